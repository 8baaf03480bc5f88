"use strict";

// Every address is relative to this page: a proxy may have the service below a path of its own.
const PLACE = new URL(".", location.href).pathname;

async function show() {
  const answer = await fetch("openapi.json");
  const found = await answer.json();
  document.title = found.info.title;
  SwaggerUIBundle({
    dom_id: "#api",
    spec: PLACE === "/" ? found : { ...found, servers: [{ url: PLACE }] },
    deepLinking: true,
    filter: true,
    defaultModelsExpandDepth: 0,
    validatorUrl: null, // else it sends the address of the document to another host
  });
}

function say(text) { document.getElementById("api").textContent = text; }

if (typeof SwaggerUIBundle === "undefined") {
  say(
    "Swagger UI is not installed here, so this page cannot show the API. In a clone, `make setup` fetches it. " +
    "The document openapi.json describes the same API to programs.",
  );
} else {
  show().catch((err) => say(`The document openapi.json cannot be read: ${err.message}. Load the page again.`));
}
