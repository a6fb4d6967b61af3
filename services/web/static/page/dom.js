// Elements from values: no text ever becomes markup here.

/** An element with properties, listeners ("onclick"), attributes ("aria-label", "data-x", "role") and children. */
export function el(tag, props = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
        if (value === undefined || value === null || value === false) continue;
        if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
        else if (name in node && !name.includes("-")) node[name] = value;
        else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
}

export const button = (text, onclick, props = {}) => el("button", { type: "button", onclick, ...props }, text);

/** Letters and digits that are nowhere else. */
export const token = () => [...crypto.getRandomValues(new Uint8Array(6))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** Whether `text` could be copied. Where the page came over plain HTTP, browsers have but the old way for that. */
export async function copied(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
    const focused = document.activeElement;
    const field = el("textarea", { value: text, className: "heard" });
    (focused.closest("dialog") ?? document.body).append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    focused.focus();
    return done;
}

/** A button that copies `text()`, and says so. */
export const copier = (text, props) => button("Copy", async () => {
    if (await copied(text())) say("Copied");
    else say("The browser does not let this page copy", "error");
}, props);

/** Says something to who hears the page, and shows it for a moment. */
export function say(text, kind = "note") {
    const area = document.getElementById("said");
    const line = el("p", { className: kind }, text);
    area.append(line);
    setTimeout(() => line.remove(), kind === "error" ? 12000 : 4000);
}

/** A dialog with `content`; whether the button `go` was pressed. */
function agreed(label, content, go) {
    return new Promise((resolve) => {
        const dialog = el("dialog", { "aria-label": label }, el("form", { method: "dialog" }, ...content,
            el("menu", {}, button("Cancel", () => dialog.close("")), go)));
        dialog.addEventListener("close", () => {
            dialog.remove();
            resolve(dialog.returnValue === "ok");
        });
        document.body.append(dialog);
        dialog.showModal();
    });
}

/** A dialog with one field; the text, or null. */
export async function askFor(title, value, ok) {
    const input = el("input", { type: "text", value, "aria-label": title, maxLength: 200 });
    const asked = agreed(title, [el("h2", {}, title), input], el("button", { value: "ok" }, ok));
    input.select();
    return await asked && input.value.trim() || null;
}

/** Whether the user says so. */
export const confirmed = (question, ok) => agreed(question, [el("p", {}, question)],
    el("button", { value: "ok", className: "danger" }, ok));

export function download(name, type, text) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    el("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
}
