// One conversation: its turns, the answer that is being written, and the prompt. What the server keeps is the truth.
import { Aloud } from "./aloud.js";
import { ApiError, call, get, post, stream } from "./api.js";
import { confirmed, el, say, token } from "./dom.js";
import { baseOf, Files } from "./files.js";
import { Log } from "./log.js";
import { Prompt } from "./prompt.js";
import { addReasoning, addStep } from "./turns.js";

const LOST = "The connection was lost before the answer ended.";
const TRIES = 60;                       // to find the server again, one a second

export class Conversation {
    /** `choices`: who may answer, from what. `used(id, name)` hears of each new turn, and of a new one's name. `first`: what a new
     *  conversation shows beside the greeting. */
    constructor(choices, used, first) {
        this.choices = choices;
        this.used = used;
        this.running = null;            // the AbortController of the answer that is being written here
        this.going = new Map();         // conversation -> that of its answer, which goes on where another one is shown
        this.placed = () => {};         // hears which conversation is shown, null: a new one
        this.draft = "";                // what was typed before a question was to be edited
        this.log = new Log({ edit: (at) => this.edit(at), again: (at) => this.again(at), rewind: (at) => this.end(at) }, first);
        this.build();
    }

    build() {
        const heard = el("div", { className: "heard", "aria-live": "polite" });
        this.aloud = new Aloud(heard);
        this.node = el("main", { "aria-label": "Chat" });
        this.files = new Files(this.node, this.choices);
        this.prompt = new Prompt({ send: () => this.send(), stop: () => this.stop(), leave: () => this.leave() },
            this.files.list, [this.files.add, this.choices.sources]);
        this.node.append(this.log.node, heard, this.prompt.status, this.prompt.form);
    }

    greet() {
        this.log.greeting.textContent = this.choices.greeting();
    }

    propose(choice, prompt) {
        this.choices.choose(choice);
        this.prompt.text = prompt;
        this.prompt.focus();
    }

    // ------------------------------------------------------------ which conversation

    begin() {
        this.wanted = null;
        this.enter(null, []);
    }

    /** Shows conversation `id`, if it can be; the id of the one that is shown then. */
    async open(id) {
        this.wanted = id;
        try {
            const { turns } = await get(path(id));
            if (this.wanted === id) this.enter(id, turns);
        } catch (error) {
            if (this.wanted === id) this.wanted = this.id;
            say(error.message, "error");
        }
        return this.id;
    }

    enter(id, turns) {
        if (!this.going.has(this.id)) this.stop();          // what is not being answered yet does not begin
        this.id = id;
        this.back = undefined;
        this.running = this.going.get(id) ?? null;
        this.busy(this.running !== null);
        this.placed(id);
        this.prompt.tell(turns.at(-1) ?? {});
        if (this.running) this.prompt.say("The answer is being written; it is shown when it is whole.");
        this.choices.enter(id);
        this.greet();
        this.take(turns);
        this.prompt.focus();
    }

    /** A conversation is deleted: its files go too. */
    async forget(id) {
        if (this.choices.bases.delete(baseOf(id))) await call("DELETE", `/knowledge/${baseOf(id)}`);
    }

    take(turns) {
        this.turns = turns;
        this.log.show(turns);
    }

    /** It is seen again: what is new meanwhile? */
    async refresh() {
        await this.choices.learn();
        if (this.id !== null && !this.running && this.node.isConnected) await this.look();
    }

    /** The turns as the server has them. Another tab may have changed them, or the server been away. */
    async look(tries = 1) {
        const { id, turns: before, running } = this;
        for (let left = tries; left > 0; left--) {
            try {
                const { turns } = await get(path(id));
                const late = this.turns !== before || this.running !== running;       // they are older than what is shown
                if (this.id === id && !late && !same(turns, before)) this.take(turns);
                return true;
            } catch (error) {
                if (error instanceof ApiError && error.status < 500) return error.status === 404 && !this.turns.length;
            }
            if (left > 1) await new Promise((resolve) => setTimeout(resolve, 1000));
            if (this.id !== id || running?.signal.aborted || !this.node.isConnected) break;
        }
        return false;
    }

    // ------------------------------------------------------------ going back

    /** Puts question `at` into the prompt again; what came from there on goes when it is sent. */
    edit(at) {
        if (this.back === undefined) this.draft = this.prompt.text;
        this.prompt.text = this.turns[at].content;
        this.back = at;
        this.prompt.say("Sending this replaces what follows it. Escape leaves it as it is.");
        this.prompt.focus();
    }

    leave() {
        if (this.back === undefined || this.running) return;
        this.back = undefined;
        this.restore();
        this.prompt.say("");
    }

    restore() {
        this.prompt.text = this.draft;
        this.draft = "";
    }

    async again(at) {
        const asked = this.turns.slice(0, at).findLastIndex((turn) => turn.role === "user");
        if (asked < 0 || this.running) return;
        if (at + 1 < this.turns.length && !await confirmed("Ask again? All that follows this answer goes.", "Ask again")) return;
        this.back = asked;
        await this.ask(this.turns[asked].content);
    }

    /** Answer `at` is to be the last. */
    async end(at) {
        if (this.running || !await confirmed("Drop all that follows this answer?", "Rewind")) return;
        await this.rewind(at + 1).catch((error) => say(error.message, "error"));
        this.prompt.focus();
    }

    /** Drops the turns from `at` on, which is a question's; not where they are others than those on the page. */
    async rewind(at) {
        const content = this.turns[at].content;
        if (!await this.look() || this.turns[at]?.content !== content) {
            throw new Error("This conversation has changed elsewhere: look at it again.");
        }
        await post(`${path(this.id)}/rewind`, { to: at });
        this.take(this.turns.slice(0, at));
    }

    // ------------------------------------------------------------ asking

    send() {
        const prompt = this.prompt.text;
        if (prompt.trim() && !this.running && this.wanted === this.id) this.ask(prompt);
    }

    stop() {
        this.running?.abort();
    }

    /** Nothing goes on. */
    close() {
        this.stop();
        for (const control of this.going.values()) control.abort();
    }

    async ask(prompt) {
        const control = this.running = new AbortController();
        const one = { prompt, signal: control.signal, said: false };       // `asked`: what was sent, `live`: its turns on the page
        this.busy(true);
        this.prompt.say("Asking…");
        try {
            if (this.back !== undefined && this.id !== null) await this.rewind(this.back);
            control.signal.throwIfAborted();            // another conversation is shown
            this.back = undefined;
            if (this.id === null) this.placed(this.id = this.wanted = `web-${Date.now().toString(36)}-${token()}`);    // in order of making
            one.id = this.id;
            await this.files.index(this.id, control.signal, (text) => this.prompt.say(text));
            if (this.prompt.text === prompt) this.restore();
            this.going.set(one.id, control);
            await this.answer(one);
        } catch (error) {
            if (this.node.isConnected) await this.failed(error, one);
        } finally {
            this.going.delete(one.id);
            if (this.running === control) {
                this.running = null;
                this.busy(false);
            }
        }
    }

    /** Says so, looks what the server kept, and leaves the prompt where nothing was said to it: sent once more it takes
     *  its own place. */
    async failed(error, { id, prompt, said, asked, live }) {
        const busy = error.code === "session_busy", stopped = error.name === "AbortError", lost = !(stopped || error instanceof ApiError);
        if (live && this.id !== id) return stopped ? null : say(error.message, "error");
        this.prompt.say(stopped ? "" : busy ? `Another tab or program is being answered in this conversation. ${error.message}` : error.message);
        if (!said && this.prompt.text !== prompt) this.prompt.text = [prompt, this.prompt.text].filter(Boolean).join("\n\n");
        if (this.prompt.text !== prompt) this.back = undefined;         // what stands there is another question
        if (!id || this.id !== id || (stopped && (said || !live))) return;
        if (lost) this.prompt.say(`${error.message} Looking for the server…`);
        const found = await this.look(lost ? TRIES : 1);
        if (this.id !== id) return;
        if (lost) this.prompt.say(found ? error.message : `${error.message} The server is away.`);
        const last = this.turns.at(-1);
        if (found && !said && !busy && this.prompt.text === prompt && last?.role === "user" && last.content === asked) {
            this.back = this.turns.length - 1;
        }
    }

    busy(yes) {
        this.prompt.busy(yes);
        this.log.node.setAttribute("aria-busy", String(yes));
    }

    /** Asks `one` and shows the answer as it grows. Where another conversation is shown meanwhile the answer goes on. */
    async answer(one) {
        const { id } = one, at = this.turns.length, who = this.choices.chosen();
        one.asked = this.files.quoted(one.prompt);
        const along = this.files.clear();
        const turns = [{ role: "user", content: one.asked }, { role: "assistant", content: "", interrupted: true, steps: [] }];
        const reply = turns[1], live = one.live = this.log.grow(...turns, at);
        let listed = at > 0;
        this.aloud.begin();
        try {
            const asked = { prompt: one.asked, session_id: id, ...this.choices.fields(id) };
            for await (const event of stream("/answer", asked, one.signal)) {
                if (!listed) this.used(id, called(one.prompt));
                listed = true;
                this.hear(event, reply, live, who);
            }
            if (reply.interrupted) throw new Error(LOST);
        } catch (error) {
            throw error instanceof TypeError ? new Error(LOST, { cause: error }) : error;
        } finally {
            one.said = Boolean(reply.content) || !reply.interrupted;
            if (!one.said) this.files.back(along);
            if (live.node.isConnected) this.ended(turns, live, one.said);
            else if (this.id === id && !reply.interrupted) await this.look().then(() => this.prompt.tell(this.turns.at(-1) ?? {}));
            if (this.node.isConnected) await this.kept(id, !at && listed ? called(one.prompt) : null).catch((error) => say(error.message, "error"));
        }
    }

    async kept(id, name) {
        await this.used(id);
        if (name && this.node.isConnected) await call("PATCH", path(id), { name });
    }

    /** What was said stays, whole or cut; a question that nothing was said to goes back into the prompt. */
    ended(turns, live, said) {
        const reply = turns[1];
        live.end(said);
        if (!said) return;
        this.turns = [...this.turns, ...turns];
        this.aloud.hear(reply.content, true);
    }

    hear(event, reply, live, who) {
        if (event.done) Object.assign(reply, { content: event.result, interrupted: false, citations: event.citations });
        if (event.delta) reply.content += event.delta;
        if (!live.node.isConnected) return;
        if (event.delta) {
            this.aloud.hear(reply.content);
            live.soon();
        } else if (event.reasoning && !event.done) {
            reply.reasoning_content = (reply.reasoning_content ?? "") + event.reasoning;
            addReasoning(live.node, event.reasoning);
        } else if (event.queue) {
            this.prompt.say(`Waiting: number ${event.queue.position} in the queue, about ${event.queue.eta_seconds} s`);
        } else if (event.step) {
            reply.steps.push(event.step);
            addStep(live.node, event.step);
            this.prompt.say(event.step);
        } else if (event.done) {
            this.prompt.tell(event);
            this.choices.answered(who, event.model).catch((error) => say(error.message, "error"));
        }
    }
}

/** A new conversation is called by its first words. */
function called(prompt) {
    const words = prompt.trim().replace(/\s+/g, " ");
    return words.length > 60 ? `${words.slice(0, 59)}…` : words;
}

const path = (id) => `/answer/${encodeURIComponent(id)}`;
const same = (some, others) => some.length === others.length && some.every((turn, at) => turn.content === others[at].content);
