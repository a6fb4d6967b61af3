// What the operator's views are made of: tables that keep the focus, forms that name the wrong field, dialogs, watching.
import { button, el, say, token } from "./dom.js";

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
        if (!before) return made;
        const focused = focusable(before).indexOf(document.activeElement);
        const cells = [...made.cells];
        [...before.cells].forEach((old, at) => renew(old, cells[at]));
        if (focused >= 0 && !before.contains(document.activeElement)) focusable(before)[focused]?.focus();
        return before;
    };
    const fill = (items) => {
        const focused = body.contains(document.activeElement);
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
        if (focused && !body.contains(document.activeElement)) node.focus({ preventScroll: true });
    };
    return { node, fill };
}

/** Puts `cell` where `old` is, unless it looks the same and has no button, which acts on what it was made of. What is
 *  opened stays so. */
function renew(old, cell) {
    const opened = [...old.querySelectorAll("details")].map((one) => one.open);
    cell.querySelectorAll("details").forEach((one, at) => { one.open = opened[at] ?? one.open; });
    if (cell.querySelector("button") || !cell.isEqualNode(old)) old.replaceWith(cell);
}

const focusable = (row) => [...row.querySelectorAll("button, a, summary, input, select")];

/** A labelled field. `hint` is read with it. */
export function field(label, input, hint) {
    input.id ||= `f${token()}`;
    const more = hint && el("small", { id: `${input.id}-hint` }, hint);
    if (more) input.setAttribute("aria-describedby", more.id);
    return el("div", { className: "field" }, el("label", { htmlFor: input.id }, label), input, more);
}

export const options = (...pairs) => pairs.map(([value, text]) => el("option", { value }, text ?? value));

/** Tells in `problem` what `error` says, at the field that it names, or else beside `go`; that field, if there is one.
 *  With null all is well again. */
function blame(node, go, problem, error) {
    node.querySelectorAll("[aria-invalid]").forEach((one) => one.removeAttribute("aria-invalid"));
    const name = error?.param?.split(".")[0];
    const wrong = name ? node.querySelector(`[name="${CSS.escape(name)}"]:enabled`) : null;
    const at = wrong && wrong.closest(".field"), menu = go.closest("menu");
    if (at) at.append(problem);
    else if (menu) menu.before(problem);
    else go.after(problem);
    problem.textContent = error?.message ?? "";
    wrong?.setAttribute("aria-invalid", "true");
    return wrong;
}

/** Has `node` run `act` when it is sent, once at a time; an error is told by `blame`, and the field that it names gets
 *  the focus. */
function sends(node, go, problem, act) {
    node.addEventListener("submit", async (event) => {
        event.preventDefault();
        blame(node, go, problem, null);
        go.disabled = true;
        let wrong = null;
        try {
            await act(node.elements);
        } catch (error) {
            wrong = blame(node, go, problem, error) || go;
        } finally {
            go.disabled = false;        // as it was, it had lost the focus
            if (wrong || document.activeElement === document.body) (wrong ?? go).focus({ preventScroll: !wrong });
        }
    });
}

const toldIn = () => el("p", { className: "error", role: "alert" });

/** A form that runs `act`; what goes wrong is told beside it, also what it is to `blame`. */
export function form(label, fields, ok, act) {
    const problem = toldIn();
    const go = el("button", { className: "primary" }, ok);
    const node = el("form", { className: "act", "aria-label": label }, el("h3", {}, label), ...fields, go, problem);
    node.blame = (error) => blame(node, go, problem, error)?.focus();
    sends(node, go, problem, act);
    return node;
}

/** `act`, which does not begin again before it has ended. */
export const once = (act, running) => () => running ??= act().finally(() => { running = null; });

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

/** A dialog with fields: their elements by name once it is agreed to, or null. With `act` it is not before that went
 *  well; what goes wrong is told in the dialog. */
export function chosen(title, fields, ok, act) {
    return new Promise((resolve) => {
        const problem = toldIn();
        const go = el("button", { value: "ok", className: "primary" }, ok);
        const inner = el("form", { method: "dialog" }, el("h2", {}, title), ...fields,
            el("menu", {}, button("Cancel", () => go.disabled || dialog.close("")), go), problem);
        // while `act` goes on it is too late to cancel
        const dialog = el("dialog", { "aria-label": title, oncancel: (event) => go.disabled && event.preventDefault() }, inner);
        if (act) {
            sends(inner, go, problem, async (elements) => {
                await act(elements);
                dialog.close("ok");
            });
        }
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
