// The live page. It makes no HTML out of text: names and keys are text nodes, always.
"use strict";

(() => {
  const SPAN_S = 600; // what the chart shows
  const SILENCE_MS = 5000; // the server speaks each second: after this long the connection is lost
  const RETRY_MS = [500, 1000, 2000, 3000];
  const HIDDEN_MS = 60000; // a tab that nobody sees gives its connection back after that

  const $ = (id) => document.getElementById(id);
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
  const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const hundredths = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
  const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const hour = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hour12: false });

  const rate = (value) => (value == null ? "–" : (value < 10 ? tenths : whole).format(value));
  const count = (value) => (value == null ? "–" : whole.format(value));
  const share = (part, all) => {
    if (!all) return "–";
    const percent = (100 * part) / all;
    // A few of very many are neither none nor all of them.
    if (part > 0 && percent < 0.01) return "< 0.01\u00a0%";
    if (part < all && percent > 99.99) return "> 99.99\u00a0%";
    return `${(percent < 1 || percent > 99 ? hundredths : tenth).format(percent)}\u00a0%`;
  };
  const bytes = (value) => {
    for (const [unit, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
      if (value >= unit) return `${tenths.format(value / unit)}\u00a0${name}`;
    }
    return `${value} bytes`;
  };
  const ago = (seconds) => {
    if (seconds < 2) return "just now";
    return seconds < 90 ? `${Math.round(seconds)} s ago` : `${Math.round(seconds / 60)} min ago`;
  };

  function element(name, className, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  // Parts of a text: what is shown as it is, and at odd places names of what can't be seen.
  function shown(parts) {
    const bdi = element("bdi");
    parts.forEach((part, place) => {
      if (place % 2) bdi.append(element("span", "hidden-char", part));
      else if (part) bdi.append(part);
    });
    return bdi;
  }
  const plain = (parts) => parts.join("");
  function say(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }
  function showParts(node, parts) {
    const key = JSON.stringify(parts);
    if (node.dataset.parts !== key) {
      node.dataset.parts = key;
      node.replaceChildren(shown(parts));
    }
  }

  // --- what the server said ------------------------------------------------------------------

  let state = null; // the last "now"
  let past = []; // per limiter: [times, allowed, denied], times of the server's monotonic clock
  let chosen = 0;
  let wanted = named();

  // The limiter that the address names, so that a link or a reload leads to the same one.
  function named() {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch {
      return "";
    }
  }

  function takeHistory(histories) {
    past = histories;
  }

  function takeNow(now) {
    state = now;
    now.limiters.forEach((limiter, place) => {
      const [times, allowed, denied] = (past[place] ??= [[], [], []]);
      const sample = limiter.sample;
      const last = times.length ? times[times.length - 1] : -Infinity;
      if (sample && sample[0] > last) {
        times.push(sample[0]);
        allowed.push(sample[1]);
        denied.push(sample[2]);
      } else if (!sample && times.length && allowed[allowed.length - 1] != null) {
        times.push(now.monotonic_s);
        allowed.push(null);
        denied.push(null);
      }
      let old = 0;
      while (old < times.length && times[old] < now.monotonic_s - SPAN_S) old += 1;
      for (const list of old ? [times, allowed, denied] : []) list.splice(0, old);
    });
    if (wanted) {
      const place = now.limiters.findIndex((limiter) => plain(limiter.name) === wanted);
      if (place >= 0) chosen = place;
      wanted = "";
    }
    if (chosen >= now.limiters.length) chosen = 0;
    render();
  }

  // --- the connection ------------------------------------------------------------------------

  let source = null;
  let heardMs = 0;
  let failures = 0;
  let retrying = 0;
  let hiddenTimer = 0;

  function connection(name, text) {
    document.body.dataset.connection = name;
    say($("connection-text"), text);
    const limiter = state && state.limiters[chosen];
    const head = name === "live" || name === "connecting" ? "" : `${text} · `;
    const title = `${head}${limiter ? `${plain(limiter.name)} · ` : ""}nanolimit`;
    if (document.title !== title) document.title = title;
  }

  function connect() {
    clearTimeout(retrying);
    retrying = 0;
    if (source) source.close();
    heardMs = Date.now();
    source = new EventSource("events");
    source.addEventListener("history", (event) => heard(() => takeHistory(JSON.parse(event.data))));
    source.addEventListener("now", (event) => heard(() => takeNow(JSON.parse(event.data))));
    source.addEventListener("error", lost);
  }

  function heard(take) {
    heardMs = Date.now();
    failures = 0;
    take();
    connection("live", "live");
  }

  function lost() {
    // Not left to the browser, which gives up for good on some errors.
    if (source) source.close();
    source = null;
    if (document.body.dataset.connection !== "out") connection("lost", "connection lost, retrying");
    if (retrying) return;
    retrying = setTimeout(connect, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
    failures += 1;
    // A stream does not tell why it ended. Another token since a restart is a reason to say so.
    fetch("data.json", { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(3000) })
      .then((answer) => {
        if (answer.status === 401) {
          clearTimeout(retrying);
          retrying = 0;
          connection("out", "signed out: reload to sign in");
        }
      })
      .catch(() => {});
  }

  setInterval(() => {
    // A server that stands still closes nothing.
    if (source && Date.now() - heardMs > SILENCE_MS) lost();
  }, 1000);

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) {
      hiddenTimer = setTimeout(() => {
        if (source) source.close();
        source = null;
        clearTimeout(retrying);
        retrying = 0;
        connection("connecting", "paused: the page is not in view");
      }, HIDDEN_MS);
    } else if (!source && !retrying && document.body.dataset.connection !== "out") {
      connection("connecting", "connecting");
      connect();
    }
  });

  // --- the page ------------------------------------------------------------------------------

  function render() {
    const limiter = state.limiters[chosen];
    $("waiting").hidden = true;
    $("main").hidden = false;
    $("sign-out").hidden = !state.token;
    renderChoice();
    showParts($("name"), limiter.name);
    const quota = JSON.stringify(limiter.quota);
    if ($("quota").dataset.said !== quota) {
      $("quota").dataset.said = quota;
      $("quota").replaceChildren(...limiter.quota.map((text) => element("li", "", text)));
    }
    say($("algorithm"), limiter.algorithm);
    $("problem").hidden = limiter.state === "open";
    if (limiter.state !== "open") showParts($("problem"), limiter.problem);
    renderFigures(limiter);
    renderChart();
    if ($("minutes").open) renderMinutes();
    renderTop(limiter);
  }

  function renderChoice() {
    const list = $("limiters").firstElementChild;
    $("limiters").hidden = state.limiters.length < 2;
    while (list.children.length > state.limiters.length) list.lastElementChild.remove();
    state.limiters.forEach((limiter, place) => {
      let item = list.children[place];
      if (!item) {
        const button = element("button", "", element("span", "name"), element("span", "said"));
        button.type = "button";
        button.addEventListener("click", () => choose(place));
        item = element("li", "", button);
        list.append(item);
      }
      const [button] = item.children;
      const [name, said] = button.children;
      showParts(name, limiter.name);
      const sample = limiter.sample;
      say(said, limiter.state !== "open" ? limiter.state
        : `${rate(sample && sample[1])}\u00a0allowed/s · ${rate(sample && sample[2])}\u00a0denied/s`);
      button.setAttribute("aria-current", String(place === chosen));
    });
  }

  function choose(place) {
    chosen = place;
    say($("result"), "");
    const name = plain(state.limiters[place].name);
    history.replaceState(null, "", `#${encodeURIComponent(name)}`);
    render();
    connection(document.body.dataset.connection, $("connection-text").textContent);
  }

  function field(name, text) {
    say(document.querySelector(`[data-field="${name}"]`), text);
  }

  function renderFigures(limiter) {
    const counts = limiter.counts;
    const sample = limiter.sample;
    const recent = limiter.recent;
    field("allowed_per_s", rate(sample && sample[1]));
    field("denied_per_s", rate(sample && sample[2]));
    field("recent_share", share(recent.denied, recent.allowed + recent.denied));
    if (!counts) return;
    field("allowed", count(counts.allowed));
    field("denied", count(counts.denied));
    field("share", share(counts.denied, counts.allowed + counts.denied));
    field("keys", count(counts.keys));
    field("capacity", count(counts.capacity));
    const fill = counts.capacity ? counts.keys / counts.capacity : 0;
    field("fill", counts.keys ? share(counts.keys, counts.capacity) : "0\u00a0%");
    field("fill_word", fill >= 1 ? "full" : fill >= 0.8 ? "nearly full" : "");
    document.querySelector('[data-bar="keys"]').style.width = `${Math.min(100, 100 * fill)}%`;
    field("memory", bytes(counts.memory_bytes));
    field("log", counts.log_capacity_bytes
      ? `long logs: ${bytes(counts.log_bytes)} of ${bytes(counts.log_capacity_bytes)}`
      : counts.keys ? `${tenths.format(counts.memory_bytes / counts.keys)} bytes a key` : "no keys");
    field("overflowed", count(counts.overflowed));
    field("evicted", count(counts.evicted));
    const more = [];
    if (counts.stalled) more.push(`${count(counts.stalled)} stalled`);
    if (counts.would_deny) more.push(`${count(counts.would_deny)} only watched, not denied`);
    field("more", more.map((each) => `, ${each}`).join(""));
  }

  // --- the chart -----------------------------------------------------------------------------

  let chart = null;
  let pinned = false; // whether a cursor, by mouse or key, says which second the legend is of

  function hatch(colour) {
    // Denied is dashed above stripes, so that it can be told without its colour.
    const ratio = devicePixelRatio || 1;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 8 * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.strokeStyle = colour;
    pen.globalAlpha = 0.4;
    pen.lineWidth = 1;
    for (const shift of [-8, 0, 8]) {
      pen.moveTo(shift, 8);
      pen.lineTo(shift + 8, 0);
    }
    pen.stroke();
    return pen.createPattern(canvas, "repeat");
  }

  function compact(value) {
    if (value >= 1e6) return `${tenths.format(value / 1e6)}M`;
    if (value >= 1e4) return `${tenths.format(value / 1e3)}k`;
    return (value < 10 ? tenths : whole).format(value);
  }

  function buildChart(data) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = {
      stroke: colour("quiet"),
      font: "12px system-ui, sans-serif",
      grid: { stroke: colour("line"), width: 1 },
      ticks: { stroke: colour("line"), width: 1, size: 4 },
    };
    const box = $("chart");
    if (chart) chart.destroy();
    chart = new uPlot({
      width: box.clientWidth,
      height: box.clientHeight,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false, points: { size: 7 } },
      padding: [10, 20, 0, 0],
      scales: {
        x: { range: () => [epochNow() - SPAN_S, epochNow()] },
        y: { range: (_, low, high) => [0, Math.max(1, (high || 0) * 1.08)] },
      },
      axes: [
        { ...axis, space: 62, size: 28, values: (_, ticks) => ticks.map((tick) => hour.format(tick * 1000)), incrs: [60, 120, 300, 600] },
        { ...axis, size: 50, values: (_, ticks) => ticks.map(compact) },
      ],
      series: [
        {},
        { label: "allowed", stroke: colour("allowed"), width: 2, points: { show: false } },
        { label: "denied", stroke: colour("denied"), width: 2, dash: [7, 4], fill: () => hatch(colour("denied")), points: { show: false } },
      ],
      hooks: { setCursor: [legend] },
    }, data, box);
  }

  const epochNow = () => (state ? state.epoch_s : Date.now() / 1000);

  function chartData() {
    const [times, allowed, denied] = past[chosen] || [[], [], []];
    const shift = state.epoch_s - state.monotonic_s;
    return [times.map((time) => time + shift), allowed, denied];
  }

  function renderChart() {
    const data = chartData();
    if (chart) chart.setData(data);
    else buildChart(data);
    legend();
    const known = (list) => list.filter((value) => value != null);
    const most = (list) => Math.max(0, ...known(list));
    $("chart").setAttribute("aria-label",
      `Requests per second in the last 10 minutes. Allowed: at most ${rate(most(data[1]))}, now ${$("legend-allowed").textContent}. ` +
      `Denied: at most ${rate(most(data[2]))}, now ${$("legend-denied").textContent}.`);
  }

  function legend() {
    if (!chart) return;
    const [times, allowed, denied] = chart.data;
    const place = chart.cursor.idx;
    pinned = place != null && chart.cursor.left >= 0;
    const sample = state.limiters[chosen].sample;
    say($("moment"), pinned ? clock.format(times[place] * 1000) : "now");
    say($("legend-allowed"), rate(pinned ? allowed[place] : sample && sample[1]));
    say($("legend-denied"), rate(pinned ? denied[place] : sample && sample[2]));
  }

  $("chart").addEventListener("keydown", (event) => {
    if (!chart || !chart.data[0].length) return;
    const times = chart.data[0];
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -times.length, End: times.length };
    if (event.key === "Escape") {
      chart.setCursor({ left: -10, top: -10 });
      return;
    }
    if (!(event.key in steps)) return;
    event.preventDefault();
    const from = pinned ? chart.cursor.idx : times.length - 1;
    const place = Math.min(times.length - 1, Math.max(0, from + (pinned ? steps[event.key] : 0)));
    chart.setCursor({ left: chart.valToPos(times[place], "x"), top: chart.over.clientHeight / 2 });
    say($("chart-said"), `${$("moment").textContent}: ${$("legend-allowed").textContent} allowed, ${$("legend-denied").textContent} denied`);
  });
  $("chart").addEventListener("blur", () => chart && chart.setCursor({ left: -10, top: -10 }));

  new ResizeObserver(() => {
    const box = $("chart");
    if (chart && box.clientWidth) chart.setSize({ width: box.clientWidth, height: box.clientHeight });
  }).observe($("chart"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (state) buildChart(chartData());
  });

  $("minutes").addEventListener("toggle", () => {
    if ($("minutes").open && state) renderMinutes();
  });

  function renderMinutes() {
    const [times, allowed, denied] = past[chosen] || [[], [], []];
    const rows = [];
    for (let minute = 0; minute < SPAN_S / 60; minute += 1) {
      const to = state.monotonic_s - 60 * minute;
      const sums = [0, 0, 0];
      times.forEach((time, place) => {
        if (time > to - 60 && time <= to && allowed[place] != null) {
          sums[0] += allowed[place];
          sums[1] += denied[place];
          sums[2] += 1;
        }
      });
      if (!sums[2]) continue;
      const said = minute ? `${minute} to ${minute + 1} min ago` : "the last one";
      const cells = [rate(sums[0] / sums[2]), rate(sums[1] / sums[2]), share(sums[1], sums[0] + sums[1])];
      const head = element("th", "", said);
      head.scope = "row";
      rows.push(element("tr", "", head, ...cells.map((text) => element("td", "number", text))));
    }
    $("minutes").querySelector("tbody").replaceChildren(...rows);
  }

  // --- top offenders -------------------------------------------------------------------------

  const rows = new Map();

  function makeRow(entry) {
    const key = element("span", "key", shown(entry.key));
    const name = element("td", "name", key);
    if (entry.kind) name.append(element("span", "kind", entry.kind));
    if (!entry.exact) name.append(element("span", "kind", "cut"));
    const row = element("tr", "", element("td", "rank"), name,
      element("td", "number denied", element("b"), element("span", "between")), element("td", "number last"), element("td", "act"));
    const limiter = state.limiters[chosen];
    if (limiter.can_reset && entry.id) {
      const button = element("button", "reset", "Reset");
      button.type = "button";
      button.setAttribute("aria-label", `Reset ${plain(entry.key)}${entry.kind ? ` (${entry.kind})` : ""}`);
      const place = chosen;
      button.addEventListener("click", () => ask(place, entry));
      row.lastElementChild.append(button);
    }
    return row;
  }

  function renderTop(limiter) {
    const body = $("top").tBodies[0];
    const top = limiter.top || [];
    $("top").hidden = !top.length;
    $("top-empty").hidden = top.length > 0;
    $("top-note").hidden = !limiter.track_top;
    say($("top-empty"), !limiter.track_top
      ? "Nobody keeps account of them: make the limiter with track_top=100, and its most denied keys stand here."
      : limiter.state !== "open" ? ""
      // A shared table has room for them whether or not its limiters keep them.
      : limiter.recent.denied ? "None to show: limiters that were made without track_top=100 don't tell."
      : "Nobody was denied in the last 10 minutes.");
    // While somebody points at a row, or has its button in focus, no row changes places: or the
    // button that is pressed would be another one's.
    const held = $("top").matches(":hover") || body.contains(document.activeElement);
    say($("top-note"), `most denied in the last 10 minutes${held ? "; order held" : ""}`);
    const seen = new Map();
    top.forEach((entry, place) => {
      const id = JSON.stringify([chosen, limiter.can_reset, entry.id, entry.kind, entry.exact, entry.id ? "" : entry.key]);
      let row = rows.get(id);
      if (!row) rows.set(id, (row = makeRow(entry)));
      seen.set(id, row);
      const [rank, , denied, last] = row.children;
      say(rank, String(place + 1));
      say(denied.children[0], count(entry.denied));
      say(denied.children[1], entry.error ? `at least ${count(entry.denied - entry.error)}` : "");
      say(last, entry.ago_s == null ? `at ${tenths.format(entry.last_denied)} s of its clock` : ago(entry.ago_s));
      last.title = entry.ago_s == null ? "" : clock.format(entry.last_denied * 1000);
    });
    for (const [id, row] of rows) {
      if (!seen.has(id)) {
        row.remove();
        rows.delete(id);
      }
    }
    let place = 0;
    for (const row of seen.values()) {
      // Moved only where it must be: a row that is moved loses the focus of its button.
      if (held ? !row.isConnected : body.children[place] !== row) {
        body.insertBefore(row, held ? null : body.children[place] || null);
      }
      place += 1;
    }
  }

  // --- reset ---------------------------------------------------------------------------------

  let asked = null;

  function ask(place, entry) {
    asked = { place, entry, from: document.activeElement };
    $("confirm-key").replaceChildren(shown(entry.key), ...(entry.kind ? [element("span", "kind", entry.kind)] : []));
    $("confirm-limiter").replaceChildren(shown(state.limiters[place].name));
    $("confirm").returnValue = "cancel";
    $("confirm").showModal();
    $("confirm-no").focus();
  }

  $("confirm").addEventListener("close", () => {
    const { place, entry, from } = asked;
    asked = null;
    if (from && from.isConnected) from.focus();
    if ($("confirm").returnValue === "reset") reset(place, entry);
  });

  function result(failed, ...said) {
    $("result").classList.toggle("failed", failed);
    $("result").replaceChildren(...said);
  }

  async function reset(place, entry) {
    const key = () => element("span", "key", shown(entry.key));
    result(false, "Resetting ", key(), " …");
    try {
      const answer = await fetch("reset", {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Nanolimit": "1" },
        body: JSON.stringify({ limiter: place, id: entry.id }),
        signal: AbortSignal.timeout(15000),
      });
      const body = await answer.json().catch(() => ({}));
      if (!answer.ok) result(true, key(), ` was not reset: ${body.error || `the server answered ${answer.status}`}`);
      else if (body.reset) result(false, key(), " was reset: its whole quota is free again.");
      else result(false, key(), " had nothing to forget: its whole quota was free already.");
    } catch (error) {
      result(true, key(), " may not have been reset: the server did not answer.");
    }
  }

  $("sign-out").addEventListener("click", async () => {
    await fetch("logout", { method: "POST", headers: { "X-Nanolimit": "1" } }).catch(() => {});
    location.reload();
  });

  window.addEventListener("hashchange", () => {
    const place = state ? state.limiters.findIndex((each) => plain(each.name) === named()) : -1;
    if (place >= 0) choose(place);
  });

  connect();
})();
