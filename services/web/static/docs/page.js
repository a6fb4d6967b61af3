"use strict";

const said = document.getElementById("said");

function say(text, wrong) {
  said.textContent = text;
  said.classList.toggle("wrong", Boolean(wrong));
}

function show(spec, key) {
  const ui = SwaggerUIBundle({
    spec,
    domNode: document.getElementById("ui"),
    validatorUrl: null,
    deepLinking: false,
    persistAuthorization: false,
    tryItOutEnabled: true,
    onComplete: () => setTimeout(() => ui.preauthorizeApiKey("bearer", key)),
  });
}

document.getElementById("open").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = document.getElementById("key").value.trim();
  say("Asking…");
  try {
    const answer = await fetch("/openapi.json", { headers: { Authorization: `Bearer ${key}` } });
    const body = await answer.json();
    if (!answer.ok) {
      say(body.message, true);
      return;
    }
    say(`${body.info.title} ${body.info.version}: requests from this page use the key above.`);
    show(body, key);
  } catch (error) {
    say(`The server did not answer: ${error.message}`, true);
  }
});
