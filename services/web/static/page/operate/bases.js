// The knowledge bases: a list of them, and one of them at #knowledge/<name>.
import { get, post } from "./api.js";
import { sharing, showBase } from "./base.js";
import { el } from "./dom.js";
import { field, form, number, options, table, watch } from "./parts.js";

export async function show(place, who, [name]) {
    if (name) return showBase(place, who, name);
    const bases = table("Those that this key may read", ["Name", "Owner", "Embeddings", "Sources", "Documents",
        "Chunks", "Shared"], (one) => `${one.name} ${one.owner}`,
        (one) => [el("a", { href: `#knowledge/${encodeURIComponent(one.name)}` }, one.name),
            one.owner === who.id ? "this key" : one.owner, [one.profile, el("small", {}, one.model)],
            one.pending ? `${number(one.sources)}, ${number(one.pending)} being read` : number(one.sources),
            number(one.documents), number(one.chunks), sharing(one.shared)],
        "There are no knowledge bases that this key may read.");
    place.append(bases.node, await maker(who));
    await watch(place, 3, async () => bases.fill((await get("/knowledge")).bases));
}

/** The form that makes one; it leads to the new base. */
async function maker(who) {
    const models = who.scopes.includes("models:read") ? (await get("/v1/models")).data.filter((one) => one.embedding) : [];
    return form("Make a knowledge base", [
        field("Name", el("input", { name: "name", required: true, maxLength: 64, pattern: "[A-Za-z0-9_\\-]+",
            autocomplete: "off" }), "letters, digits, - and _"),
        field("Embeddings", el("select", { name: "profile" },
            ...options(["", "the first embedding profile"], ...models.map((one) => [one.id])))),
        field("Tokens of a chunk", el("input", { type: "number", name: "chunk_tokens", min: 16, max: 65536 }),
            "empty: 256, or what the model takes"),
    ], "Make it", async ({ name, profile, chunk_tokens }) => {
        const made = await post("/knowledge", { name: name.value.trim(), ...(profile.value ? { profile: profile.value } : {}),
            ...(chunk_tokens.value ? { chunk_tokens: Number(chunk_tokens.value) } : {}) });
        location.hash = `#knowledge/${encodeURIComponent(made.name)}`;
    });
}
