// The page: signing in, then the conversations on the left and one of them on the right.
import { forgetKey, get, keepKey, key, onRefused } from "./api.js";
import { Conversation } from "./chat.js";
import { button, el, say } from "./dom.js";
import { firstSteps } from "./first.js";
import { operate } from "./operate.js";
import { Sessions } from "./sessions.js";

const app = document.getElementById("app");
const said = el("div", { id: "said", role: "status", "aria-live": "polite" });
const skip = document.querySelector(".skip");

function signIn(why = "") {
    skip.hidden = true;
    const field = el("input", { type: "password", id: "key", autocomplete: "off", required: true, spellcheck: false });
    const problem = el("p", { className: "error", role: "alert" }, why);
    const enter = async (event) => {
        event.preventDefault();
        keepKey(field.value.trim());
        try {
            start(await get("/auth"));
        } catch (error) {
            forgetKey();
            problem.textContent = error.message;
        }
    };
    app.replaceChildren(el("main", { className: "sign-in" }, el("h1", {}, "Parley"),
        el("form", { onsubmit: enter }, el("label", { htmlFor: "key" }, "API key"), field,
            el("button", {}, "Sign in"), problem),
        el("p", { className: "hint" }, "The key stays in this tab and goes when it is closed. An operator makes one with ",
            el("code", {}, "./setup.sh keys create"), ".")), said);
    field.focus();
}

/** Who may answer: personalities and profiles, and what each of them is answered by; whether files can be indexed. */
async function choices() {
    const [personalities, models] = await Promise.all([
        get("/personalities").then((found) => found.personalities),
        get("/v1/models").then((found) => found.data, () => []),
    ]);
    const those = [
        ...personalities.filter((one) => one.model).map((one) => ({
            kind: "personality", name: one.name, model: one.model, about: one.description ?? "", greets: one.intro_dialogue })),
        ...models.filter((one) => !one.embedding && one.id !== one.file).map((one) => ({        // a file alone is no profile
            kind: "profile", name: one.id, model: one.file, about: "" })),
    ];
    return { those, embeds: models.some((one) => one.embedding) };
}

async function start(who) {
    const [{ those, embeds }, bases] = await Promise.all([choices(), get("/knowledge").then((found) => found.bases, () => [])]);
    const conversation = new Conversation(those, embeds, bases, (id, anew) => sessions.used(id, anew),
        (ask) => firstSteps(who, those, ask));
    const sessions = new Sessions(who, (id) => conversation.open(id), () => conversation.begin(),
        (id) => conversation.forget(id));
    const leave = () => {
        conversation.stop();
        forgetKey();
        signIn();
    };
    const menu = button("☰", () => app.classList.toggle("listing"), { className: "menu", "aria-label": "Conversations" });
    skip.hidden = false;
    app.replaceChildren(
        el("header", {}, menu, el("h1", {}, "Parley"), conversation.chooser,
            el("span", { className: "who", title: who.id ?? "" }, who.name ?? ""), button("Sign out", leave)),
        el("div", { className: "columns" }, sessions.node, conversation.node), said);
    operate(app, who);
    onRefused((why) => {
        conversation.stop();
        signIn(why);
    });
    document.addEventListener("keydown", (event) => {
        if (event.key === "Escape") conversation.stop();
        if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "o") {
            event.preventDefault();
            conversation.begin();
        }
    });
    conversation.begin();
    await sessions.load().catch((error) => say(error.message, "error"));
}

if (key()) get("/auth").then(start, (error) => signIn(error.message));
else signIn();
