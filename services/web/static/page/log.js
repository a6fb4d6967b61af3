// The turns of a conversation as they stand on the page: the latest at first, and at the end the answer that grows.
import { button, el } from "./dom.js";
import { show } from "./render.js";
import { turnNode } from "./turns.js";

const LATEST = 60;                      // turns that are shown at first
const NEAR = 80;                        // pixels from the end where a reader still follows it

export class Log {
    /** `acts`: what a turn offers, by its number. `first`: what stands where no turns are. */
    constructor(acts, first) {
        this.acts = acts;
        this.greeting = el("p", { className: "greeting" });
        this.first = first;
        // Tokens are not read out one by one: aloud.js tells sentences.
        this.node = el("div", { className: "log", role: "log", "aria-live": "off", "aria-label": "Conversation", tabIndex: 0 });
    }

    turn(turn, at, live = false) {
        return turnNode(turn, at, this.acts, live);
    }

    show(turns) {
        const hidden = Math.max(0, turns.length - LATEST);
        const before = !turns.length ? [this.greeting, this.first] : hidden ? [button(`Show ${hidden} earlier`, (event) => {
            event.target.replaceWith(...turns.slice(0, hidden).map((turn, at) => this.turn(turn, at)));
            this.node.focus();
        }, { className: "earlier" })] : [];
        this.node.replaceChildren(...before, ...turns.slice(hidden).map((turn, at) => this.turn(turn, hidden + at)));
        this.node.scrollTop = turns.length ? this.node.scrollHeight : 0;
    }

    /** Draws; who was at the end stays there, who reads further up is left alone. */
    follow(draw) {
        const follows = this.node.scrollHeight - this.node.scrollTop - this.node.clientHeight < NEAR;
        draw();
        if (follows) this.toEnd();
    }

    toEnd() {
        this.node.scrollTop = this.node.scrollHeight;
    }

    /** Adds a question, which is turn `at`, and the answer to it. `reply` may change then: `soon()` draws it, at most
     *  once a frame and a quarter of the time, and `end(kept)` leaves both of them as they are, or takes them away. */
    grow(question, reply, at) {
        if (!at) this.node.replaceChildren();
        const asked = this.turn(question, at), node = this.turn(reply, at + 1, true), text = node.querySelector(".text");
        this.node.append(asked, node);
        this.toEnd();
        let waits = false, rest = 0;
        const draw = () => {
            const begun = performance.now();
            waits = false;
            if (!node.isConnected) return;          // it has ended, or another conversation is shown
            this.follow(() => show(text, reply.content));
            rest = 3 * (performance.now() - begun);
        };
        const soon = () => {
            if (!waits) setTimeout(requestAnimationFrame, rest, draw);
            waits = true;
        };
        return { node, soon, end: (kept) => this.follow(() => {
            if (kept) node.replaceWith(this.turn(reply, at + 1));
            else if (at) [asked, node].forEach((one) => one.remove());
            else this.show([]);
        }) };
    }
}
