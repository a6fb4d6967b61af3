// A profile's editor, with a try-out of what is typed in beside what is saved.
import { call, get, stream } from "./api.js";
import { button, el, say } from "./dom.js";
import { field, form, tried } from "./parts.js";
import { profileFields } from "./profileform.js";

export const pathOf = (name) => `/models/profiles/${encodeURIComponent(name)}`;

/** `isNew`: one that is to be made, of what the profile `name` is, if there is a name. */
export async function showProfile(place, isNew, name) {
    const [about, { models }, found] = await Promise.all([get("/models/profiles"), get("/models"),
        name === undefined ? null : get(pathOf(name))]);
    place.append(el("p", {}, el("a", { href: "#models" }, "All models and profiles")));
    if (!isNew && !found.editable) {
        place.append(el("h3", {}, name), el("p", {}, `It comes from ${found.source}, and is edited there.`));
        return;
    }
    let base = found;
    const fields = profileFields(about, models);
    fields.load(found?.profile ?? {});
    const warned = el("p", { className: "hint", role: "status" }, ...(found?.warnings ?? []));
    const called = el("input", { name: "name", maxLength: 200, autocomplete: "off" });
    const newer = button("Load the newer one", () => tried(async () => {
        base = await get(pathOf(name));
        fields.load(base.profile, true);
        newer.hidden = true;
        node.blame(null);
        node.querySelector(".primary").focus();
        say("What you have typed stands in what is newer now");
    }), { hidden: true });
    const save = async () => {
        const to = isNew ? called.value : name;
        if (isNew && !to) throw Object.assign(new Error("give it a name"), { param: "name" });
        try {
            base = await call("PUT", pathOf(to), fields.read(), undefined,
                isNew ? { "If-None-Match": "*" } : { "If-Match": base.etag });
        } catch (error) {
            newer.hidden = isNew || error.code !== "changed_meanwhile";
            throw error;
        }
        say("Saved: the next question has it");
        if (isNew) {
            location.hash = `#models/edit/${encodeURIComponent(to)}`;
            return;
        }
        fields.load(base.profile, true);
        warned.textContent = base.warnings.join(" ");
    };
    const node = form(isNew ? "Make a profile" : `Edit ${name}`,
        [...(isNew ? [field("Name", called)] : []), ...fields.nodes], "Save", save);
    node.noValidate = true;
    node.append(newer, warned);
    place.append(node, tryout(node, fields.read, () => base && { title: isNew ? name : "As saved", profile: base.profile }));
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
                await asked(now, read(), prompt.value, stopping.signal);
                if (beside) await asked(now = beside, other.profile, prompt.value, stopping.signal);
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

async function asked({ text, told }, profile, prompt, signal) {
    told.textContent = "Is being asked…";
    try {
        for await (const event of stream("/models/try", { profile, prompt }, signal)) {
            if (event.delta) text.append(event.delta);
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
