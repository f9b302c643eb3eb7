// Makes a container in the emulator: node container.mjs PORT ACCOUNT KEY CONTAINER
//
// Signed as "Authorize with Shared Key" of Azure's Storage services REST API reference says; in an emulator the account
// is a part of the path, and so comes twice.
import { createHmac } from "node:crypto";

const [port, account, key, container] = process.argv.slice(2);
const headers = { "x-ms-date": new Date().toUTCString(), "x-ms-version": "2021-12-02" };
const canonical = Object.entries(headers).map(([name, value]) => `${name}:${value}`);
const signed = ["PUT", ...Array(11).fill(""), ...canonical, `/${account}/${account}/${container}`, "restype:container"];
const signature = createHmac("sha256", Buffer.from(key, "base64")).update(signed.join("\n")).digest("base64");
const answer = await fetch(`http://127.0.0.1:${port}/${account}/${container}?restype=container`, {
  method: "PUT",
  headers: { ...headers, authorization: `SharedKey ${account}:${signature}` },
});
if (answer.status !== 201) {
  console.error(answer.status, await answer.text());
  process.exit(1);
}
