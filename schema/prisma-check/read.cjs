// node read.cjs SCHEMA: prints a schema as Prisma's parser reads it: {"formatted": text, "models": [...]}.
// Exits with 1 and the parser's errors when the schema is not valid. Node finds the parser through NODE_PATH.
const { readFileSync } = require("node:fs");
const { format, get_dmmf, validate } = require("@prisma/prisma-schema-wasm");

const schema = readFileSync(process.argv[2], "utf8");
const editor = { textDocument: { uri: "file:/schema.prisma" }, options: { tabSize: 2, insertSpaces: true } };
const input = JSON.stringify({ prismaSchema: [["schema.prisma", schema]], noColor: true });

try {
  validate(input);
} catch (refusal) {
  console.error(JSON.parse(refusal.message).message ?? refusal.message);
  process.exit(1);
}
const { models } = JSON.parse(get_dmmf(input)).datamodel;
const [[, formatted]] = JSON.parse(format(JSON.stringify([["schema.prisma", schema]]), JSON.stringify(editor)));
console.log(JSON.stringify({ formatted, models }));
