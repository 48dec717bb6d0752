// Shows /openapi.json. Everything is set as text.
const add = (parent, tag, text) => {
  const element = document.createElement(tag);
  element.textContent = text ?? "";
  parent.append(element);
  return element;
};

const resolve = (schema) => schema.$ref?.split("/").pop();

const kind = (schema) => {
  if (schema.$ref) return resolve(schema);
  if (schema.enum) return schema.enum.join(" | ");
  const range = schema.minimum !== undefined ? ` ${schema.minimum}..${schema.maximum ?? ""}` : "";
  return `${schema.type ?? "any"}${range}`;
};

const api = await (await fetch("/openapi.json")).json();
document.getElementById("about").textContent = api.info.description;

const routes = document.getElementById("routes");
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const line = add(routes, "p");
    add(line, "code", `${method.toUpperCase()} ${path}`);
    const body = operation.requestBody?.content["application/json"].schema;
    line.append(` ${operation.summary}${body ? ` (body: ${resolve(body)})` : ""}`);
  }
}

const schemas = document.getElementById("schemas");
for (const [name, schema] of Object.entries(api.components.schemas)) {
  add(schemas, "h3", name);
  const list = add(schemas, "ul");
  for (const [field, value] of Object.entries(schema.properties ?? {})) {
    const item = add(list, "li");
    add(item, "code", field);
    item.append(` ${kind(value)}${value.description ? `: ${value.description}` : ""}`);
  }
}
