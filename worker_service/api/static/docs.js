"use strict";
// Shows openapi.json to people. Text only, nothing from elsewhere: it works on a host without a way out.
function add(parent, tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function kind(schema) {
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  return schema.type || "";
}

// What reStructuredText and Markdown mark as code.
function plain(text) { return text.replaceAll("`", ""); }

function parameters(operation) {
  const body = operation.requestBody && operation.requestBody.content["application/json"].schema;
  const given = body
    ? Object.entries(body.properties).map(([name, schema]) => ({ name, schema, required: body.required.includes(name) }))
    : operation.parameters || [];
  return given.map((one) => [
    one.name, one.content ? "JSON" : kind(one.schema),
    one.required ? "must be given" : one.schema.default === undefined ? "" : JSON.stringify(one.schema.default),
  ]);
}

function table(parent, heads, rows) {
  const made = add(add(parent, "div"), "table");
  made.parentNode.className = "scroll";
  const head = add(add(made, "thead"), "tr");
  for (const text of heads) add(head, "th", text);
  const body = add(made, "tbody");
  for (const row of rows) {
    const line = add(body, "tr");
    for (const text of row) add(line, "td", text);
  }
}

async function show() {
  const api = await (await fetch("/openapi.json")).json();
  for (const [path, methods] of Object.entries(api.paths)) {
    const one = methods.get || methods.post;
    const part = add(document.getElementById("verbs"), "details");
    const title = add(part, "summary");
    add(title, "code", path);
    title.append(` ${Object.keys(methods).join(", ").toUpperCase()}: ${plain(one.summary || "")}`);
    if (one.description) add(part, "p", plain(one.description)).className = "said";
    const rows = parameters(one);
    if (rows.length) table(part, ["Parameter", "Type", "Default"], rows);
    table(part, ["HTTP", "Meaning"], Object.entries(one.responses).map(([code, each]) => [code, each.description]));
  }
}

show().catch(() => { document.getElementById("verbs").textContent = "openapi.json cannot be read. Reload this page."; });
