// node bench.cjs CLIENT: reads {"pool": ..., "messages": FILE} from standard input and stores the messages of that file, a JSON
// object by model on each line, as the platform's backend does: one create, createMany for processes and ports, an upsert for
// each program. Prints the seconds it took, without the start.
const { readFileSync } = require("node:fs");
const { PrismaPg } = require("@prisma/adapter-pg");
const { PrismaClient, Prisma } = require(process.argv[2]);

const { pool, messages } = JSON.parse(readFileSync(0, "utf8"));
const prisma = new PrismaClient({ adapter: new PrismaPg(pool) });

// Prisma represents the models' BigInt columns as BigInt.
const wide = Object.fromEntries(Prisma.dmmf.datamodel.models.map((model) => [
  model.name, model.fields.filter((field) => field.type === "BigInt").map((field) => field.name),
]));
function toBigInts(model, row) {
  for (const name of wide[model]) if (row[name] != null) row[name] = BigInt(row[name]);
  return row;
}

async function store(message) {
  await prisma.systemMetrics.create({ data: message.SystemMetrics[0] });
  await prisma.processSnapshot.createMany({ data: message.ProcessSnapshot });
  await prisma.portUsage.createMany({ data: message.PortUsage });
  for (const { machineId, executablePath, firstSeen, ...rest } of message.ApplicationUsage) {
    await prisma.applicationUsage.upsert({
      where: { machineId_executablePath: { machineId, executablePath } },
      create: { machineId, executablePath, firstSeen, ...rest },
      update: rest,
    });
  }
}

async function main() {
  const read = readFileSync(messages, "utf8").trim().split("\n").map((line) => JSON.parse(line));
  for (const message of read) for (const [model, rows] of Object.entries(message)) for (const row of rows) toBigInts(model, row);
  await prisma.$queryRaw`SELECT 1`;
  const began = process.hrtime.bigint();
  for (const message of read) await store(message);
  console.log(Number(process.hrtime.bigint() - began) / 1e9);
  await prisma.$disconnect();
}

main();
