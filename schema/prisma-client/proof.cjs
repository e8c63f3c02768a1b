// node proof.cjs CLIENT: reads {"pool": ..., "known": ...} from standard input, uses the live database through Prisma's own
// client as the platform would, and prints what it found. Node finds the packages through NODE_PATH.
const { readFileSync } = require("node:fs");
const { PrismaPg } = require("@prisma/adapter-pg");
const { PrismaClient, Prisma } = require(process.argv[2]);

const { pool, known } = JSON.parse(readFileSync(0, "utf8"));
const prisma = new PrismaClient({ adapter: new PrismaPg(pool) });
const clientOf = (model) => prisma[model.name[0].toLowerCase() + model.name.slice(1)];
// Values that JSON cannot represent, as strings that Python can compare.
const plain = (_, value) => (typeof value === "bigint" ? `${value}n` : value);

// Counts the rows of a model and the rows behind each of its relations.
async function followRelations(model) {
  const relations = model.fields.filter((field) => field.kind === "object").map((field) => field.name);
  const include = Object.fromEntries(relations.map((name) => [name, true]));
  const rows = await clientOf(model).findMany(relations.length ? { include } : {});
  const behind = (name) => rows.reduce((sum, row) => sum + (Array.isArray(row[name]) ? row[name].length : row[name] ? 1 : 0), 0);
  return { rows: rows.length, relations: Object.fromEntries(relations.map((name) => [name, behind(name)])) };
}

// Reads a series page by page, by its key.
async function readPages(machineId) {
  const found = [];
  for (let last; ; ) {
    const place = last ? { cursor: { machineId_timestamp_processId: last }, skip: 1 } : {};
    const page = await prisma.processSnapshot.findMany({
      where: { machineId }, orderBy: [{ timestamp: "asc" }, { processId: "asc" }], take: 3, ...place,
    });
    if (!page.length) return found;
    found.push(...page.map((row) => row.processId));
    const { timestamp, processId } = page.at(-1);
    last = { machineId, timestamp, processId };
  }
}

// Writes like the platform: every kind of value, updates, a refused row, and a delete that cascades.
async function writeRows() {
  const machine = await prisma.machine.create({
    data: {
      name: "by Prisma", internalName: "by-prisma", status: "building", os: "ubuntu", allowedIps: ["10.0.0.7"],
      template: { create: { name: "small", cores: 1, ram: 2, storage: 10 } },
      department: { create: { name: "Sales" } },
      applicationUsage: {
        create: { executablePath: "/a", applicationName: "a", fileSize: 9007199254740993n, iconData: Buffer.from([0, 255, 7]) },
      },
      guestEvents: { create: { type: "error_report", detail: { text: "é", list: [1, null, { deep: true }] } } },
    },
    include: { applicationUsage: true, guestEvents: true },
  });
  const renamed = await prisma.machine.update({ where: { id: machine.id }, data: { name: "renamed" } });
  const refused = await prisma.machine.create({
    data: { name: "x", internalName: "by-prisma", status: "off", os: "linux", templateId: machine.templateId },
  }).catch((error) => error.code);
  const [usage] = machine.applicationUsage;
  const values = {
    fileSize: usage.fileSize, iconData: [...usage.iconData], detail: machine.guestEvents[0].detail, ips: machine.allowedIps,
    moved: renamed.updatedAt > machine.updatedAt, made: machine.createdAt instanceof Date,
  };
  await prisma.machine.delete({ where: { id: machine.id } });
  const left = await prisma.applicationUsage.count({ where: { machineId: machine.id } });
  return { ...values, refused, left };
}

async function main() {
  const models = {};
  for (const model of Prisma.dmmf.datamodel.models) models[model.name] = await followRelations(model);
  const sample = await prisma.systemMetrics.findFirst({ where: { machineId: known }, include: { machine: true } });
  const answer = { models, sample, pages: await readPages(known), written: await writeRows() };
  console.log(JSON.stringify(answer, plain));
  await prisma.$disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
