// node oracle.cjs SCHEMA: reads {"pool": ...} from standard input and prints the SQL with which Prisma's own migration engine
// would change the live database to match the schema. Node finds the packages through NODE_PATH.
const { readFileSync } = require("node:fs");
const { dirname, join } = require("node:path");
const pg = require("pg");
const { PrismaPg } = require("@prisma/adapter-pg");
const { bindMigrationAwareSqlAdapterFactory, ColumnTypeEnum } = require("@prisma/driver-adapter-utils");

const engine = dirname(require.resolve("@prisma/schema-engine-wasm"));
const schema = { path: "schema.prisma", content: readFileSync(process.argv[2], "utf8") };
const CHAR = 18;
const TEXT = 25;

// The adapter does not know "char", the one-letter type of PostgreSQL's catalogue, which the engine reads: its columns pass
// the adapter as text and get their type back behind it.
const letters = new Set();
const query = pg.Client.prototype.query;
pg.Client.prototype.query = function queryWithLetters(...given) {
  const asText = (result) => {
    for (const field of result?.fields ?? []) {
      if (field.dataTypeID !== CHAR) continue;
      letters.add(field.name);
      field.dataTypeID = TEXT;
    }
    return result;
  };
  // A pool passes a callback, other callers await a promise.
  if (typeof given.at(-1) === "function") {
    const done = given.pop();
    return query.call(this, ...given, (error, result) => done(error, asText(result)));
  }
  return query.apply(this, given)?.then?.(asText);
};

async function withLetters(connect) {
  const adapter = await connect();
  const queryRaw = adapter.queryRaw.bind(adapter);
  adapter.queryRaw = async (statement) => {
    letters.clear();
    const answer = await queryRaw(statement);
    const typed = (type, place) => (letters.has(answer.columnNames[place]) ? ColumnTypeEnum.Character : type);
    answer.columnTypes = answer.columnTypes.map(typed);
    return answer;
  };
  return adapter;
}

// Does for node what the package's own entry does for bundlers.
async function loadEngine() {
  const bound = await import(join(engine, "schema_engine_bg.js"));
  const wasm = new WebAssembly.Module(readFileSync(join(engine, "schema_engine_bg.wasm")));
  const { exports } = new WebAssembly.Instance(wasm, { "./schema_engine_bg.js": bound });
  global.PRISMA_WASM_PANIC_REGISTRY = { set_message: (message) => console.error(message) };
  bound.__wbg_set_wasm(exports);
  exports.__wbindgen_start();
  return bound.SchemaEngine;
}

async function main() {
  const { pool } = JSON.parse(readFileSync(0, "utf8"));
  const factory = new PrismaPg(pool);
  const connect = factory.connect.bind(factory);
  factory.connect = () => withLetters(connect);
  const SchemaEngine = await loadEngine();
  const options = { datamodels: [[schema.path, schema.content]] };
  const running = await SchemaEngine.new(options, () => {}, bindMigrationAwareSqlAdapterFactory(factory));
  const { stdout } = await running.diff({
    from: { tag: "schemaDatasource", files: [schema], configDir: "/" },
    to: { tag: "schemaDatamodel", files: [schema] },
    script: true,
    shadowDatabaseUrl: null,
    exitCode: null,
    filters: { externalTables: [], externalEnums: [] },
  });
  console.log(stdout);
}

main().then(() => process.exit(0), (error) => {
  console.error(error);
  process.exit(1);
});
