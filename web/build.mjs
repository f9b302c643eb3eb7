// Bundles src/ into dist/, each file also compressed, and prints the sizes.
// boot.js runs before the first paint; app.js is on every page; charts.js where charts are.
import { build, context } from "esbuild";
import { readFile, rm, writeFile, mkdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const FILES = ["app.css", "app.js", "boot.js", "charts.js"];
const options = {
  entryPoints: ["src/app.css", "src/app.ts", "src/boot.ts", "src/charts.ts"],
  outdir: "dist",
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "chrome110", "firefox115", "safari16"],
  charset: "utf8",
  legalComments: "none",
  logLevel: "warning",
};

process.chdir(fileURLToPath(new URL(".", import.meta.url)));
await mkdir("dist", { recursive: true });

async function compress() {
  for (const file of FILES) {
    const bytes = await readFile(`dist/${file}`);
    const gzip = gzipSync(bytes, { level: 9 });
    const brotli = brotliCompressSync(bytes, {
      params: { [constants.BROTLI_PARAM_QUALITY]: 9, [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length },
    });
    await writeFile(`dist/${file}.gz`, gzip);
    await writeFile(`dist/${file}.br`, brotli);
    const kb = (n) => `${(n / 1024).toFixed(1)} KiB`.padStart(10);
    console.log(`${file.padEnd(10)} ${kb(bytes.length)}  gzip ${kb(gzip.length)}  brotli ${kb(brotli.length)}`);
  }
}

if (process.argv.includes("--watch")) {
  const watched = await context({
    ...options,
    plugins: [{ name: "compress", setup: (b) => b.onEnd((r) => (r.errors.length ? undefined : compress())) }],
  });
  await watched.watch();
} else {
  await rm("dist", { recursive: true, force: true });
  await mkdir("dist", { recursive: true });
  await build(options);
  await compress();
}
