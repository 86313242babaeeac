// The system's Chromium, without a window, for tests of pages.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { chromium } from "playwright-core";
import { root } from "./cloud.mjs";

/** The first of these on the PATH; CHROMIUM_BIN names another. */
const NAMES = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];
const ON_PATH = process.env.PATH.split(path.delimiter).flatMap((folder) => NAMES.map((name) => path.join(folder, name)));
const CHROMIUM = process.env.CHROMIUM_BIN ?? ON_PATH.find((file) => fs.existsSync(file)) ?? "/usr/bin/chromium";
const SCREENSHOTS = path.resolve(root, process.env.CARGO_TARGET_DIR ?? "target", "screenshots");

const ARGUMENTS = [
  // Tests run as root in containers, where Chromium's own sandbox cannot.
  "--no-sandbox",
  "--disable-gpu",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

export class Browser {
  static async start() {
    fs.mkdirSync(SCREENSHOTS, { recursive: true });
    return new Browser(await chromium.launch({ executablePath: CHROMIUM, args: ARGUMENTS, headless: true }));
  }

  constructor(chromium) {
    this.chromium = chromium;
  }

  stop() {
    return this.chromium.close();
  }

  /**
   * An empty browser window: nothing in it is remembered. What pages in it ask for, and what they complain about, is kept.
   * `how` is what playwright's `newContext` takes.
   */
  async window(how = {}) {
    const context = await this.chromium.newContext({ viewport: { width: 1100, height: 900 }, locale: "en-GB", timezoneId: "UTC", ...how });
    const page = await context.newPage();
    const requests = [];
    const complaints = [];
    context.on("request", (request) => requests.push(request));
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
    return Object.assign(page, { requests, complaints });
  }
}

/** Keeps what the whole page looks like now, for eyes: `make test` leaves it in target/screenshots. */
export const screenshot = (page, name) => page.screenshot({ path: path.join(SCREENSHOTS, `${name}.png`), fullPage: true });

/** Nothing reaches beyond the window's right edge, and nothing has to be scrolled sideways to be read. */
export async function fits(page) {
  const { wide, page: width } = await page.evaluate(() => ({
    page: document.documentElement.clientWidth,
    wide: document.documentElement.scrollWidth,
  }));
  assert.ok(wide <= width, `the page is ${wide} px wide in a window of ${width}`);
}

/** Every text that is shown stands out from what is behind it, by WCAG's measure for small text: 4.5 to 1. */
export async function isReadable(page) {
  const faint = await page.evaluate(() => {
    const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const parts = (color) => color.match(/[\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
    const behind = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const color = parts(getComputedStyle(at).backgroundColor);
        if (color[3] !== 0) return color;
      }
      return [255, 255, 255];
    };
    const faint = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const text = texts.currentNode;
      const element = text.parentElement;
      if (!text.data.trim() || !element.checkVisibility() || element.matches(":disabled, script, noscript")) continue;
      const [a, b] = [luminance(parts(getComputedStyle(element).color)), luminance(behind(element))];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (contrast < 4.5) faint.push(`${contrast.toFixed(2)}: ${text.data.trim().slice(0, 60)}`);
    }
    return faint;
  });
  assert.deepEqual(faint, []);
}
