// What the operator's views are made of: tables that keep the focus, forms that name the wrong field, dialogs, watching.
import { button, el, say } from "./dom.js";

/** Numbers and sizes as people read them. */
export const number = (value) => value === null || value === undefined ? "–" : Number(value).toLocaleString("en");
/** “1 key”, “2,000 keys”. */
export const many = (count, what) => `${number(count)} ${what}${count === 1 ? "" : "s"}`;
export const size = (bytes) => {
    if (bytes === null || bytes === undefined) return "–";
    const step = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(bytes, 1)) / 10)));
    return `${(bytes / 1024 ** step).toFixed(step ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][step]}`;
};
export const moment = (iso) => iso ? el("time", { dateTime: iso, title: iso }, new Date(iso).toLocaleString()) : "–";

/** A table; `fill(items)` draws what has changed and leaves the other rows, and the focus, where they are.
 *  `row(item)` gives the cells' contents; the first one heads its row. `id(item)` tells rows apart. */
export function table(caption, heads, id, row, empty) {
    const body = el("tbody");
    const none = el("p", { className: "hint", hidden: true }, empty);
    const rows = new Map();
    const node = el("div", { className: "table", role: "region", "aria-label": caption, tabIndex: 0 }, el("table", {},
        el("caption", {}, caption), el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
        body), none);
    const draw = (item, before) => {
        const [first, ...others] = row(item);
        const made = el("tr", {}, el("th", { scope: "row" }, first),
            ...others.map((cell, at) => el("td", { "data-head": heads[at + 1] }, cell)));
        const focused = before ? focusable(before).indexOf(document.activeElement) : -1;
        before?.replaceWith(made);
        if (focused >= 0) focusable(made)[focused]?.focus();
        return made;
    };
    const fill = (items) => {
        const wanted = new Set(items.map(id));
        for (const [name, { made }] of rows) if (!wanted.has(name)) made.remove(), rows.delete(name);
        items.forEach((item, at) => {
            const told = JSON.stringify(item);
            let kept = rows.get(id(item));
            if (kept?.told !== told) rows.set(id(item), kept = { told, made: draw(item, kept?.made) });
            if (body.children[at] !== kept.made) body.insertBefore(kept.made, body.children[at] ?? null);
        });
        none.hidden = items.length > 0;
        node.firstChild.hidden = !items.length;
    };
    return { node, fill };
}

const focusable = (row) => [...row.querySelectorAll("button, a, summary, input, select")];

/** A labelled field. `hint` is read with it. */
export function field(label, input, hint) {
    input.id ||= `f${crypto.randomUUID().slice(0, 8)}`;
    const more = hint && el("small", { id: `${input.id}-hint` }, hint);
    if (more) input.setAttribute("aria-describedby", more.id);
    return el("div", { className: "field" }, el("label", { htmlFor: input.id }, label), input, more);
}

export const options = (...pairs) => pairs.map(([value, text]) => el("option", { value }, text ?? value));

/** A form that runs `act` once at a time; an error is told beside it, and the field that it names gets the focus. */
export function form(label, fields, ok, act) {
    const problem = el("p", { className: "error", role: "alert" });
    const go = el("button", { className: "primary" }, ok);
    const submit = async (event) => {
        event.preventDefault();
        problem.textContent = "";
        node.querySelectorAll("[aria-invalid]").forEach((one) => one.removeAttribute("aria-invalid"));
        go.disabled = true;
        try {
            await act(node.elements);
        } catch (error) {
            problem.textContent = error.message;
            const wrong = error.param && node.querySelector(`[name="${CSS.escape(error.param.split(".")[0])}"]`);
            wrong?.setAttribute("aria-invalid", "true");
            wrong?.focus();
        } finally {
            go.disabled = false;
        }
    };
    const node = el("form", { className: "act", "aria-label": label, onsubmit: submit },
        el("h3", {}, label), ...fields, go, problem);
    return node;
}

/** Runs `act`; what goes wrong is said. Whether it went well. */
export async function tried(act) {
    try {
        await act();
        return true;
    } catch (error) {
        say(error.message, "error");
        return false;
    }
}

/** A dialog with fields: their elements by name once it is agreed to, or null. */
export function chosen(title, fields, ok) {
    return new Promise((resolve) => {
        const inner = el("form", { method: "dialog" }, el("h2", {}, title), ...fields,
            el("menu", {}, button("Cancel", () => dialog.close("")),
                el("button", { value: "ok", className: "primary" }, ok)));
        const dialog = el("dialog", { "aria-label": title }, inner);
        dialog.addEventListener("close", () => {
            dialog.remove();
            resolve(dialog.returnValue === "ok" ? inner.elements : null);
        });
        document.body.append(dialog);
        dialog.showModal();
    });
}

/** Calls `look` now and every `seconds` while `node` is on the page and the tab is seen. The first error is thrown,
 *  a later one is shown on `node`'s top until it is well again. */
export async function watch(node, seconds, look) {
    const problem = el("p", { className: "error", role: "alert", hidden: true });
    await look();
    node.prepend(problem);
    const again = async () => {
        if (!node.isConnected) return;
        if (!document.hidden) {
            try {
                await look();
                problem.hidden = true;
            } catch (error) {
                if (problem.hidden) problem.textContent = `This is not up to date: ${error.message}`;
                problem.hidden = false;
            }
        }
        setTimeout(again, seconds * 1000);
    };
    setTimeout(again, seconds * 1000);
}
