// A client of pgmq that knows nothing of Taskyard: submits one task and waits for the event of its end.
// node pgmq_client.mjs <folder of pgmq-js> <host> <port> <database> <user> <password> <prompt>; prints the event as JSON.
import { createRequire } from "node:module";

const [folder, host, port, database, user, password, prompt] = process.argv.slice(2);
const { Pgmq } = createRequire(`${folder}/`)("pgmq-js");
const pgmq = await Pgmq.new({ host, port: Number(port), database, user, password, ssl: false }, { skipExtensionCreation: true });
const sent = await pgmq.msg.send("inbox", { prompt, agent: "shell", priority: 7 });
const batch = await pgmq.msg.sendBatch("inbox", [{ prompt: "one" }, { prompt: "two" }]);
console.error(`sent ${[sent, ...batch]}`);
for (const until = Date.now() + 60_000; Date.now() < until; await new Promise((r) => setTimeout(r, 50))) {
    const event = await pgmq.msg.read("done", 30);
    if (event) {
        await pgmq.msg.delete("done", event.msgId);
        console.log(JSON.stringify(event.message));
        break;
    }
}
await pgmq.close();
