// Where a question is typed, and the line above it that tells how it goes.
import { button, el } from "./dom.js";
import { told } from "./turns.js";

const TOUCHED = matchMedia("(pointer: coarse)");       // there Enter is a new line: no key with Shift makes one
const TWICE = 400;                      // ms within which a second click on Send is not one on Stop

export class Prompt {
    /** `send()` and `stop()` a question; `leave()` what was going to be edited. `files`: a list of those that go along;
     *  `beside`: what stands below. */
    constructor({ send, stop, leave }, files, beside) {
        this.acts = { send, leave };
        this.state = el("p", { className: "state", role: "status" });
        this.meter = el("meter", { "aria-label": "Context window in use", hidden: true });
        this.field = el("textarea", { id: "prompt", rows: 2, placeholder: "Ask something", "aria-label": "Prompt",
            onkeydown: (event) => this.key(event), oninput: () => this.grow() });
        this.go = el("button", { className: "primary" }, "Send");
        this.halt = button("Stop", () => this.halt.ariaDisabled !== "true" && stop(), { hidden: true, title: "Escape" });
        const submit = (event) => {
            event.preventDefault();
            send();
        };
        this.status = el("div", { className: "status" }, this.meter, this.state);
        this.form = el("form", { onsubmit: submit }, files, this.field, el("div", { className: "send" }, this.go, this.halt),
            el("div", { className: "beside" }, ...beside));
    }

    get text() {
        return this.field.value;
    }

    set text(text) {
        this.field.value = text;
        this.grow();
    }

    grow() {
        this.field.rows = Math.min(12, Math.max(2, this.field.value.split("\n").length));
    }

    focus() {
        this.field.focus();
    }

    key(event) {
        if (event.isComposing || event.keyCode === 229) return;        // an input method's; Safari tells it by 229 alone
        if (event.key === "Enter" && !event.shiftKey && !TOUCHED.matches) {
            event.preventDefault();
            this.acts.send();
        } else if (event.key === "Escape") {
            this.acts.leave();
        }
    }

    say(text) {
        this.state.textContent = text;
    }

    /** Tells how full the window was, of an answer. */
    tell(answer) {
        this.say(told(answer));
        this.meter.hidden = !this.state.textContent;
        if (!this.meter.hidden) Object.assign(this.meter, { max: answer.context.window, value: answer.usage.total_tokens });
    }

    busy(yes) {
        const focused = document.activeElement;
        this.halt.ariaDisabled = String(yes);
        if (yes) setTimeout(() => { this.halt.ariaDisabled = "false"; }, TWICE);
        this.go.hidden = yes;
        this.halt.hidden = !yes;
        if (yes && focused === this.go) this.halt.focus();
        else if (!yes && [this.halt, document.body].includes(focused)) this.focus();
    }
}
