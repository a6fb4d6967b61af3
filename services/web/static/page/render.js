// Markdown to elements. What a model or a person wrote is parsed, then cleaned by DOMPurify, and only then shown.
/* global DOMPurify, trustedTypes */
import { Marked } from "./marked.js";
import { copied } from "./dom.js";
import hljs from "./highlight.js";

// Of two grammars of which one holds the other only that one is here: TypeScript's for JavaScript, C++'s for C. Java's
// does for Kotlin and C#, and TypeScript's for PHP, but for some of their words.
const NAMES = { js: "typescript", jsx: "typescript", mjs: "typescript", javascript: "typescript", ts: "typescript",
    tsx: "typescript", php: "typescript", c: "cpp", h: "cpp", hpp: "cpp", "c++": "cpp", kt: "java", kotlin: "java", py: "python",
    sh: "bash", console: "shell", html: "xml", yml: "yaml", cs: "java", csharp: "java", toml: "ini", rs: "rust", rb: "ruby", jsonc: "json" };
const KNOWN = new Set(["python", "typescript", "bash", "shell", "json", "xml", "sql", "go", "rust",
    "cpp", "java", "ruby", "yaml", "ini", "diff", "dockerfile"]);
const TAGS = ["a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"];
// No images: their address could carry off what is on the page. No ids, names, styles: they could disguise it.
const RULES = { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "class", "align", "start"], ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false, ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i, RETURN_TRUSTED_TYPE: true };
const CLASSES = /^(hljs[\w-]*|language-[\w-]+|function_|class_|inherited__|language_|built_in|constant_)$/;
const marked = new Marked({ gfm: true, breaks: true });

DOMPurify.addHook("uponSanitizeAttribute", (_node, data) => {
    if (data.attrName === "class") {
        data.attrValue = data.attrValue.split(/\s+/).filter((name) => CLASSES.test(name)).join(" ");
        data.keepAttr = data.attrValue !== "";
    }
});
DOMPurify.addHook("afterSanitizeAttributes", (node) => {
    if (node.tagName === "A") {
        node.setAttribute("rel", "noopener noreferrer nofollow");
        node.setAttribute("target", "_blank");
    }
});

/** Puts `text` into `node`, as markdown. */
export function show(node, text) {
    try {
        node.innerHTML = DOMPurify.sanitize(marked.parse(text), RULES);
    } catch {
        node.textContent = text;        // nested so deep that the parser's stack is full
    }
}

/** Colours the code in `node`, and gives each block a button that copies it. What scrolls is reached by keyboard. */
export async function colour(node) {
    for (const table of node.querySelectorAll("table")) table.tabIndex = 0;
    for (const [at, code] of node.querySelectorAll("pre > code").entries()) {
        code.parentNode.tabIndex = 0;
        const found = [...code.classList].find((name) => name.startsWith("language-"))?.slice(9).toLowerCase();
        const language = NAMES[found] ?? found;
        const copy = document.createElement("button");
        copy.type = "button";
        copy.className = "copy";
        copy.textContent = "Copy";
        copy.setAttribute("aria-label", `Copy code ${at + 1}`);
        const told = (text) => {
            copy.textContent = text;
            copy.removeAttribute("aria-label");
        };
        copy.addEventListener("click", async () => told(await copied(code.textContent) ? "Copied" : "Not copied"));
        code.parentNode.append(copy);
        if (!KNOWN.has(language)) continue;
        if (!hljs.getLanguage(language)) {
            const grammar = await import(`./${language}.js`).catch(() => null);      // without colours it reads as well
            if (!grammar) continue;
            hljs.registerLanguage(language, grammar.default);
        }
        const { value } = hljs.highlight(code.textContent, { language });
        code.innerHTML = DOMPurify.sanitize(value, RULES);
    }
}
