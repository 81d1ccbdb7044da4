"use strict";
(function () {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  /** An element with properties; children are nodes or text, never markup. */
  function make(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }
  const text = (node) => node.textContent.replace(/\s+/g, " ").trim();
  document.documentElement.classList.add("scripts");

  // Values: a cell's data-sort where it has one, else its text; numbers as numbers; null where nothing was measured.
  function value(cell) {
    const raw = cell.dataset.sort !== undefined ? cell.dataset.sort : text(cell);
    if (raw === "–" || raw === "") return null;
    const number = Number(raw);
    return Number.isNaN(number) ? raw : number;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  // Sorting; what is missing goes last either way.
  $$("table.sortable").forEach((table) => {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      const button = $("button", head);
      if (!button) return;
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, key: value(row.cells[column]) }));
        rows.sort((a, b) => {
          if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
          return down ? -compare(a.key, b.key) : compare(a.key, b.key);
        });
        table.tBodies[0].append(...rows.map((entry) => entry.row));
      });
    });
  });

  // Downloads: any table as CSV, any drawing as SVG or PNG.
  function save(blob, name) {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  const fileName = (title, ending) => (title.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60) || "table") + ending;
  /** A field as CSV; what a spreadsheet would take for a formula begins with an apostrophe. */
  function field(content) {
    let shown = String(content ?? "");
    if (typeof content !== "number" && /^[=+\-@\t\r]/.test(shown)) shown = "'" + shown;
    return /[",\n\r]/.test(shown) ? '"' + shown.replaceAll('"', '""') + '"' : shown;
  }
  function csv(table) {
    const heads = Array.from(table.tHead ? table.tHead.rows[0].cells : []);
    const outcomes = heads.map((head) => head.dataset.field && head.classList.contains("attack"));
    const lines = Array.from(table.rows, (row) =>
      Array.from(row.cells).flatMap((cell, column) => {
        if (cell.tagName === "TH" && cell.dataset.field) {
          return outcomes[column] ? [cell.dataset.field, "outcome" + cell.dataset.field.slice(4)] : [cell.dataset.field];
        }
        const own = value(cell);
        const content = typeof own === "number" && cell.tagName === "TD" ? own : text(cell);
        return outcomes[column] ? [own, cell.dataset.outcome] : [content === "–" ? "" : content];
      }),
    );
    return lines.map((line) => line.map(field).join(",") + "\n").join("");
  }
  const PAINT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "paint-order"];
  const LETTERS = ["font-family", "font-size", "font-weight"];
  /** A drawing that needs no style sheet: every shape carries what the page paints it with. */
  function alone(svg) {
    const copy = svg.cloneNode(true);
    const shapes = $$("*", copy);
    $$("*", svg).forEach((shape, index) => {
      const style = getComputedStyle(shape);
      const names = shape.tagName === "text" ? [...PAINT, ...LETTERS] : PAINT;
      if (shape.closest("defs, title, desc") && shape.tagName !== "line") return;
      names.forEach((name) => {
        if (!shape.getAttribute(name)?.startsWith("url(")) shapes[index].setAttribute(name, style.getPropertyValue(name));
      });
    });
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const behind = getComputedStyle(svg.closest("figure")).backgroundColor;
    Object.entries({ width, height, fill: behind }).forEach(([name, at]) => ground.setAttribute(name, at));
    copy.prepend(ground);
    return { width, height, source: new XMLSerializer().serializeToString(copy) };
  }
  async function asPng(svg, name) {
    const { width, height, source } = alone(svg);
    const image = make("img", { src: "data:image/svg+xml;charset=utf-8," + encodeURIComponent(source) });
    await image.decode();
    const canvas = make("canvas", { width: 2 * width, height: 2 * height });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(blob, name), "image/png");
  }
  function tools(...buttons) {
    return make("p", { className: "tools" }, ...buttons.map(([name, about, onclick]) => {
      const button = make("button", { type: "button", onclick }, name);
      button.setAttribute("aria-label", `Download ${about} as ${name}`);
      return button;
    }));
  }
  /** Give the figures and tables below a node their buttons, and figures a line for what is under the pointer. */
  function equip(root) {
    $$("figure", root).forEach((figure) => {
      const svg = $(":scope > svg", figure);
      const title = text($("figcaption", figure));
      svg.after(make("output", { className: "hint" }));
      figure.append(tools(
        ["SVG", title, () => save(new Blob([alone(svg).source], { type: "image/svg+xml" }), fileName(title, ".svg"))],
        ["PNG", title, () => asPng(svg, fileName(title, ".png"))],
      ));
      ["pointerover", "click"].forEach((kind) => svg.addEventListener(kind, (event) => {
        const hint = event.target.closest("g")?.querySelector(":scope > title");
        if (hint) $(":scope > output.hint", figure).textContent = hint.textContent;
      }));
    });
    $$(".scroll > table", root).forEach((table) => {
      const title = table.caption ? text(table.caption) : "table";
      const write = () => save(new Blob([csv(table)], { type: "text/csv" }), fileName(title, ".csv"));
      table.parentElement.after(tools(["CSV", title, write]));
    });
  }

  // What a heading of a run opens. Of many runs it is kept compressed, and made when it is opened.
  function unpacked(packed) {
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }
  async function unfold(details) {
    const packed = $(":scope > script", details);
    if (!packed) return;
    packed.remove();
    details.insertAdjacentHTML("beforeend", await unpacked(packed));
    equip(details);
  }
  /** The body of a run, to be read and not to be shown. */
  async function body(details) {
    const packed = $(":scope > script", details);
    if (!packed) return details;
    return new DOMParser().parseFromString(await unpacked(packed), "text/html").body;
  }
  $$("details.run").forEach((details) => {
    details.addEventListener("toggle", () => { if (details.open) unfold(details); });
  });
  /** Question, stage and answer of every answer in a run's body. */
  function answers(root) {
    return $$("table.answers", root).flatMap((table) => {
      const stages = Array.from(table.tHead.rows[0].cells, text);
      return Array.from(table.tBodies[0].rows).flatMap((row) =>
        Array.from(row.cells).slice(1).map((cell, index) => ({ question: row.cells[0], stage: stages[index + 1], cell })),
      );
    });
  }

  const table = document.getElementById("runs");
  if (table) manyRuns(table);
  equip(document);

  function manyRuns(table) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const fields = heads.map((head) => head.dataset.field);
    const rows = Array.from(table.tBodies[0].rows, (row) => ({
      row,
      name: text(row.cells[0]),
      words: (row.textContent + " " + row.cells[0].title).toLowerCase(),
      details: document.getElementById($("th a", row).getAttribute("href").slice(1)),
    }));

    window.addEventListener("load", () => setTimeout(() => table.classList.remove("short"), 50));

    // The command that makes a row, copied; shown where the browser does not let it be copied.
    rows.forEach((entry) => {
      const copy = make("button", { type: "button", className: "copy", title: "Copy the command that makes this run" });
      copy.setAttribute("aria-label", "Copy the command that makes " + entry.name);
      copy.addEventListener("click", async () => {
        const command = entry.row.dataset.command;
        const told = document.getElementById("filter-told");
        try {
          await navigator.clipboard.writeText(command);
          told.textContent = `copied: ${command}`;
        } catch {
          told.textContent = command;
          getSelection().selectAllChildren(told);
        }
      });
      entry.row.cells[0].append(copy);
    });

    // Columns: as many as the window has room for, in their order, until the reader chooses.
    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
    const boxes = heads.map((head) => make("input", { type: "checkbox", checked: true }));
    const chosen = () => boxes.some((box) => box.dataset.chosen);
    function putAway() {
      const away = boxes.flatMap((box, i) => (box.checked ? [] : [`#runs tr > :nth-child(${i + 1})`]));
      sheet.replaceSync(away.length ? `@media screen { ${away.join(", ")} { display: none } }` : "");
    }
    function fit() {
      if (chosen()) return;
      sheet.replaceSync("");
      let used = 0;
      const room = table.parentElement.clientWidth;
      const widths = heads.map((head) => head.offsetWidth);
      widths.forEach((width, i) => { boxes[i].checked = (used += width) <= room || i < 2; });
      putAway();
    }
    boxes.forEach((box, i) => box.addEventListener("change", () => { box.dataset.chosen = "yes"; putAway(); }));
    $("#chooser > div").append(...boxes.slice(1).map((box, i) => make("label", {}, box, " " + text($("button", heads[i + 1])))));
    new ResizeObserver(fit).observe(table.parentElement);

    // Filtering.
    const input = document.getElementById("filter");
    const told = document.getElementById("filter-told");
    input.form.addEventListener("submit", (event) => event.preventDefault());
    input.addEventListener("input", () => {
      let fits;
      try {
        fits = query(input.value, fields);
      } catch (error) {
        told.textContent = error.message;
        return;
      }
      let shown = 0;
      rows.forEach((entry) => {
        const fitting = fits(entry);
        entry.row.hidden = entry.details.hidden = !fitting;
        shown += fitting;
      });
      told.textContent = `${shown} of ${rows.length} runs`;
    });

    // Two runs side by side: every column, then what each was asked.
    const compared = document.getElementById("compare");
    const sides = $$("select", compared);
    async function sideBySide() {
      const pair = sides.map((side) => rows[side.selectedIndex]);
      const names = pair.map((entry) => entry.name);
      const facts = fields.slice(1).map((name, i) => [text($("button", heads[i + 1])), ...pair.map((e) => text(e.row.cells[i + 1]))]);
      const asked = (await Promise.all(pair.map((entry) => body(entry.details)))).map(answers);
      const key = (one) => text(one.question) + "\n" + one.stage;
      const other = new Map(asked[1].map((one) => [key(one), one]));
      const both = asked[0].filter((one) => other.has(key(one)));
      const replies = both.map((one) => [text(one.question), one.stage, ...[one, other.get(key(one))].map((a) => text(a.cell))]);
      $(".result", compared).replaceChildren(
        listed("What differs, and what does not", ["", ...names], facts, true),
        listed("The same questions", ["question", "model", ...names], replies, true),
      );
      equip($(".result", compared));
    }
    compared.addEventListener("toggle", () => {
      if (sides[0].options.length) return;
      sides.forEach((side, which) => {
        side.append(...rows.map((entry) => make("option", {}, entry.name)));
        side.selectedIndex = which;
        side.addEventListener("change", sideBySide);
      });
      sideBySide();
    });

    // Search in what the runs were asked, and in what they answered.
    const search = document.getElementById("search");
    $("form", search).addEventListener("submit", async (event) => {
      event.preventDefault();
      const wanted = document.getElementById("words").value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = [];
      for (const entry of wanted.length ? rows : []) {
        for (const one of answers(await body(entry.details))) {
          const line = [entry.name, text(one.question), one.stage, text(one.cell)];
          const all = line.slice(1).join(" ").toLowerCase();
          if (wanted.every((word) => all.includes(word))) found.push(line);
        }
      }
      const told = document.getElementById("words-told");
      told.textContent = `${found.length} answers${found.length > 200 ? ", of which the first 200 are shown" : ""}`;
      $(".result", search).replaceChildren(listed("Found", ["run", "question", "model", "answer"], found.slice(0, 200)));
      equip($(".result", search));
    });

    // Subjects, one at a time.
    const stepper = document.getElementById("stepper");
    if (stepper) {
      const subjects = $$("details.subject");
      const select = $("select", stepper);
      select.append(...subjects.map((details) => make("option", {}, text($("h3", details)))));
      const show = (at) => {
        select.selectedIndex = (at + subjects.length) % subjects.length;
        subjects.forEach((details, i) => { details.hidden = !(details.open = i === select.selectedIndex); });
      };
      select.addEventListener("change", () => show(select.selectedIndex));
      $$("button", stepper).forEach((button) =>
        button.addEventListener("click", () => show(select.selectedIndex + Number(button.dataset.step))),
      );
      show(0);
    }
  }

  /** A table of text; of `pairs` the rows are marked whose last two cells are not the same. */
  function listed(title, heads, lines, pairs) {
    const head = make("tr", {}, ...heads.map((name) => make("th", { scope: "col" }, name)));
    const rows = lines.map(([first, ...rest]) => {
      const unlike = pairs && rest[rest.length - 1] !== rest[rest.length - 2];
      return make("tr", { className: unlike ? "unlike" : "" }, make("th", { scope: "row" }, first), ...rest.map((cell) => make("td", {}, cell)));
    });
    const table = make("table", { className: "listed" }, make("caption", {}, title), make("thead", {}, head), make("tbody", {}, ...rows));
    const region = make("div", { className: "scroll tall", tabIndex: 0 }, table);
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", title);
    return region;
  }

  // The filter's language, a part of that of `letgo runs`: words, and clauses `FIELD OP VALUE`, survived(ATTACK),
  // attacked(ATTACK), kept(ATTACK) OP VALUE, forgotten, finished; joined by and (or nothing), or, not and brackets.
  function query(source, fields) {
    const tokens = source.match(/"[^"]*"|'[^']*'|(?:kept|survived|attacked)\([^)]*\)|<=|>=|!=|==|[=<>~()]|[^\s,()<>=!~"']+/gi) || [];
    const operators = {
      "=": (a, b) => same(a, b), "==": (a, b) => same(a, b), "!=": (a, b) => !same(a, b),
      "<": (a, b) => compare(a, b) < 0, "<=": (a, b) => compare(a, b) <= 0,
      ">": (a, b) => compare(a, b) > 0, ">=": (a, b) => compare(a, b) >= 0,
      "~": (a, b) => new RegExp("^" + String(b).split("*").map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&")).join(".*") + "$", "i").test(String(a)),
    };
    const same = (a, b) => String(a).toLowerCase() === String(b).toLowerCase();
    const unquoted = (token) => token.replace(/^(["'])(.*)\1$/, "$2");
    let at = 0;
    const next = (word) => tokens[at]?.toLowerCase() === word && ++at;
    /** The columns of the attacks that a pattern means: relearn, quantize:bits=4, quantize4. */
    function attacks(pattern) {
      const [name, settings = ""] = unquoted(pattern.trim()).split(/:(.*)/);
      const found = fields.flatMap((label, column) => {
        const [own, set = ""] = (label.match(/^kept\((.*)\)$/) || ["", ""])[1].split(/:(.*)/);
        const known = set.split(",");
        const number = name.startsWith(own) && name.slice(own.length);
        const fits = name === own || (own && number && known.some((one) => one.endsWith("=" + number)));
        return fits && settings.split(",").every((one) => !one || known.includes(one)) ? [column] : [];
      });
      if (!found.length) throw new Error(`no attack here is called ${pattern}`);
      return found;
    }
    function operand(token) {
      const call = token.match(/^(kept|survived|attacked)\((.*)\)$/i);
      if (call) {
        const columns = attacks(call[2]);
        const cells = (entry) => columns.map((column) => entry.row.cells[column]).filter((cell) => cell.dataset.outcome);
        if (/^kept$/i.test(call[1])) {
          return (entry) => cells(entry).map(value).filter((one) => one !== null).reduce((a, b) => (a === null ? b : Math.min(a, b)), null);
        }
        if (/^attacked$/i.test(call[1])) return (entry) => cells(entry).length > 0 || null;
        return (entry) => (cells(entry).length > 0 && cells(entry).every((cell) => cell.dataset.outcome === "survived")) || null;
      }
      const column = fields.indexOf(token.toLowerCase());
      return column < 0 ? null : (entry) => value(entry.row.cells[column]);
    }
    function clause() {
      if (next("not")) { const inner = clause(); return (entry) => !inner(entry); }
      if (next("(")) {
        const inner = either();
        if (!next(")")) throw new Error("a bracket is not closed");
        return inner;
      }
      const token = tokens[at++];
      if (token === undefined || token in operators || token === ")") throw new Error("a word or a column is missing");
      const left = operand(token);
      if (tokens[at] in operators) {
        const operator = operators[tokens[at++]];
        const right = tokens[at++];
        if (left === null) throw new Error(`no column is called ${token}; there are ${fields.slice(1).join(", ")}`);
        if (right === undefined) throw new Error("a value is missing");
        const bound = right !== unquoted(right) || Number.isNaN(Number(right)) ? unquoted(right) : Number(right);
        return (entry) => { const own = left(entry); return own !== null && operator(own, bound); };
      }
      if (left !== null && token.includes("(")) return (entry) => left(entry) !== null;
      const verdict = fields.indexOf("verdict");
      if (/^(partly_)?forgotten$/i.test(token)) {
        const words = /^p/i.test(token) ? ["forgotten", "partly forgotten"] : ["forgotten"];
        return (entry) => words.includes(entry.row.cells[verdict].dataset.sort);
      }
      const word = unquoted(token).toLowerCase();
      return (entry) => entry.words.includes(word);
    }
    function every() {
      const parts = [clause()];
      while (at < tokens.length && tokens[at] !== ")" && tokens[at].toLowerCase() !== "or") { next("and"); parts.push(clause()); }
      return (entry) => parts.every((part) => part(entry));
    }
    function either() {
      const parts = [every()];
      while (next("or")) parts.push(every());
      return (entry) => parts.some((part) => part(entry));
    }
    if (!tokens.length) return () => true;
    const all = either();
    if (at < tokens.length) throw new Error(`${tokens[at]} closes nothing`);
    return all;
  }

  // A link to a run opens it; printing opens what would be lost on paper, and closes it again.
  function reveal() {
    const target = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    if (target && target.tagName === "DETAILS") target.open = true;
  }
  window.addEventListener("hashchange", reveal);
  reveal();
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = $$("details.run:not([open]), details.how:not([open]):not(.scripted), details.subject:not([open])");
    opened = opened.filter((details) => !$(":scope > script", details));
    opened.forEach((details) => { details.open = true; });
  });
  window.addEventListener("afterprint", () => {
    opened.forEach((details) => { details.open = false; });
    opened = [];
  });
})();
