"use strict";

if (typeof SwaggerUIBundle === "undefined") {
  document.getElementById("api").textContent =
    "Swagger UI is not installed here, so this page cannot show the API. In a clone, `make setup` fetches it. " +
    "The document /openapi.json describes the same API to programs.";
} else {
  SwaggerUIBundle({
    dom_id: "#api",
    url: "/openapi.json",
    deepLinking: true,
    filter: true,
    defaultModelsExpandDepth: 0,
    validatorUrl: null, // else it sends the address of the document to another host
    onComplete: () => { document.title = document.querySelector("#api .title").firstChild.textContent; },
  });
}
