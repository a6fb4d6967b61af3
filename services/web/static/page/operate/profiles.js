// A profile's editor, with a try-out of what is typed in beside what is saved.
import { call, get, key, stream } from "./api.js";
import { button, el, say } from "./dom.js";
import { field, form, tried } from "./parts.js";
import { profileFields } from "./profileform.js";

export const pathOf = (name) => `/models/profiles/${encodeURIComponent(name)}`;
export const addressOf = (name, what = "edit") => `#models/${what}/${encodeURIComponent(name)}`;
/** What was typed and not saved, by the editor's address; it outlives the view. */
export const drafts = new Map();

addEventListener("beforeunload", (event) => {
    if (key() && drafts.size) event.preventDefault();           // the browser asks
});

/** `isNew`: one that is to be made, of what the profile `name` is, if there is a name. */
export async function showProfile(place, who, isNew, name) {
    const at = location.hash, kept = drafts.get(at);
    const [about, { models }, found] = await Promise.all([get("/models/profiles"), get("/models"),
        name === undefined ? null : get(pathOf(name))]);
    place.append(el("p", {}, el("a", { href: "#models" }, "All models and profiles")));
    if (!isNew && !found.editable) {
        place.append(el("h3", {}, name), el("p", {}, `It comes from ${found.source}, and is edited there.`));
        return;
    }
    let base = found;
    const fields = profileFields(about, models);
    const draft = kept?.by === who.id ? kept : null;
    fields.load(found?.profile ?? {}, draft?.typed);
    const warned = el("p", { className: "hint", role: "status" }, ...(found?.warnings ?? []));
    const called = el("input", { name: "name", maxLength: 200, autocomplete: "off", value: draft?.name });
    const keep = () => {
        const typed = fields.typed();
        if (typed.length || called.value) return drafts.set(at, { typed, name: called.value, by: who.id });
        drafts.delete(at);
        again.hidden = true;
    };
    const newer = button("Load the newer one", () => tried(async () => {
        base = await get(pathOf(name));
        fields.load(base.profile, fields.typed());
        newer.hidden = true;
        node.blame(null);
        node.querySelector(".primary").focus();
        say("What you have typed stands in what is newer now");
    }), { hidden: true });
    const save = async () => {
        const to = isNew ? called.value.trim() : name, sent = new Map(fields.typed());
        if (/^\.{0,2}$/.test(to)) throw Object.assign(new Error("give it a name"), { param: "name" });
        try {
            base = await call("PUT", pathOf(to), fields.read(), undefined,
                isNew ? { "If-None-Match": "*" } : { "If-Match": base.etag });
        } catch (error) {
            newer.hidden = isNew || error.code !== "changed_meanwhile";
            throw error;
        }
        say("Saved: the next question has it");
        if (isNew) {
            drafts.delete(at);
            if (node.isConnected) location.hash = addressOf(to);
            return;
        }
        fields.load(base.profile, fields.typed().filter(([name, value]) => sent.get(name) !== value));
        keep();
        warned.textContent = base.warnings.join(" ");
    };
    const node = form(isNew ? "Make a profile" : `Edit ${name}`,
        [...(isNew ? [field("Name", called)] : []), ...fields.nodes], "Save", save);
    node.noValidate = true;
    node.append(newer, warned);
    node.addEventListener("input", keep);
    const again = el("p", { role: "status", hidden: !draft }, "What you had typed stands here, not saved. ",
        button("Discard it", () => {
            fields.load(base?.profile ?? {});
            called.value = "";
            keep();
            node.querySelector("input, select").focus();
        }));
    place.append(again, node, tryout(node, fields.read, () => base && { title: isNew ? name : "As saved", profile: base.profile }));
}

/** The form that asks both, one after the other, so that neither slows the other down: what is typed in (`read`) and, if
 *  there is one, what is `saved()`. What is wrong with the first is told in its form, `editor`. */
function tryout(editor, read, saved) {
    const prompt = el("textarea", { name: "prompt", rows: 3 });
    const columns = el("div", { className: "trials" });
    let stopping = null;
    const stop = button("Stop", () => {
        stopping.abort();
        prompt.focus();
    }, { hidden: true });
    const node = form("Try it", [field("Prompt", prompt, "is answered by what is typed in above, without saving it")], "Try",
        async () => {
            const other = saved(), edited = column("As typed in"), beside = other && column(other.title);
            columns.replaceChildren(...[beside, edited].filter(Boolean).map((one) => one.node));
            stopping = new AbortController();
            stop.hidden = false;
            editor.blame(null);
            let now = edited;
            try {
                await asked(now, read(), prompt.value, stopping);
                if (beside) await asked(now = beside, other.profile, prompt.value, stopping);
            } catch (error) {
                if (error.name === "AbortError") return;
                if (now !== edited || !error.param?.startsWith("profile.")) throw error;
                editor.blame(Object.assign(error, { param: error.param.slice(8) }));
            } finally {
                stop.hidden = true;
            }
        });
    node.noValidate = true;
    node.append(stop, columns);
    return node;
}

function column(title) {
    const text = el("pre", { tabIndex: 0, "aria-label": title }), told = el("p", { className: "hint", role: "status" });
    return { text, told, node: el("section", { "aria-label": title }, el("h4", {}, title), text, told) };
}

async function asked({ text, told }, profile, prompt, stopping) {
    told.textContent = "Is being asked…";
    try {
        for await (const event of stream("/models/try", { profile, prompt }, stopping.signal)) {
            if (!text.isConnected) stopping.abort();            // nobody sees it any more
            else if (event.delta) text.append(event.delta);
            else if (event.done) told.textContent = figures(event);
            else if (event.queue) told.textContent = `Waits, at place ${event.queue.position}`;
            else if (event.reasoning) told.textContent = "Thinks…";
        }
    } catch (error) {
        told.textContent = error.name === "AbortError" ? "Stopped" : "Not answered";
        throw error;
    }
}

function figures({ model, usage, timings, finish_reason, warnings }) {
    const speed = usage.completion_tokens / timings.decode_ms * 1000;
    return [model, `${usage.prompt_tokens} + ${usage.completion_tokens} tokens`,
        Number.isFinite(speed) && `${speed.toFixed(1)} tokens/s`,
        `began after ${((timings.queue_ms + timings.prefill_ms) / 1000).toFixed(2)} s`, `ended by ${finish_reason}`,
        ...(warnings ?? [])].filter(Boolean).join(" · ");
}
