// Tasks for people: ranked by keys or buttons, saved at each answer. What cannot be sent is kept in the browser until it can.
"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const base = `/label/${encodeURIComponent(facts.queue)}`;
  const storage = `rounds-label:${facts.queue}:${facts.annotator}`;
  const find = (name) => document.querySelector(`[data-${name}]`);
  const LETTERS = "abcdefghi";
  // Oldest first, each kept by itself: what a tab did not send before it was closed, the next one does.
  const unsent = Object.keys(localStorage)
    .filter((key) => key.startsWith(`${storage}:`))
    .map((key) => JSON.parse(localStorage.getItem(key)))
    .sort((a, b) => a.given_at - b.given_at);
  let upcoming = facts.tasks;
  let answered = facts.answered;
  let left = facts.left;
  let task = null;
  let places = []; // positions of cards from best to worst, each with whether it ties with the one before
  let ties = false;
  let margin = "";
  let seconds = 0;
  let since = null;
  let sending = false;

  // What stands on the page.
  function element(name, text, className) {
    const found = document.createElement(name);
    if (text !== undefined) found.textContent = text;
    if (className) found.className = className;
    return found;
  }
  function card(found, i) {
    const own = element("article", undefined, "card");
    own.dataset.card = i;
    const head = element("h2");
    const button = element("button");
    button.type = "button";
    button.dataset.letter = LETTERS[i];
    button.setAttribute("aria-keyshortcuts", LETTERS[i]);
    button.setAttribute("aria-label", `Response ${LETTERS[i].toUpperCase()}: rank it next`);
    button.append(element("kbd", LETTERS[i].toUpperCase()));
    head.append(button, element("span", "", "rank"));
    const text = element("div", undefined, "text whole");
    text.append(element("span", found.text.slice(0, found.shared), "shared"), found.text.slice(found.shared));
    const pieces = element("div", undefined, "text pieces");
    for (const [isShared, part] of found.pieces) pieces.append(isShared ? part : element("mark", part));
    own.append(head, text, pieces);
    return own;
  }
  function show(next) {
    task = next ?? null;
    [places, ties, margin, seconds] = [[], false, "", 0];
    since = document.hidden ? null : performance.now();
    find("task").hidden = !task;
    find("done").hidden = Boolean(task);
    find("note").value = "";
    find("note-field").hidden = true;
    if (task) {
      const number = task.cards.length;
      find("heading").textContent = `Rank ${number} responses, ${LETTERS.slice(0, number).toUpperCase().split("").join(", ")}`;
      find("turns").replaceChildren(
        ...task.turns.map((turn) => {
          const own = element("div", undefined, "turn");
          if (turn.role) own.append(element("span", turn.role, "role"));
          own.append(turn.text);
          return own;
        }),
      );
      find("cards").replaceChildren(...task.cards.map(card));
      document.querySelectorAll("[data-pair]").forEach((e) => (e.hidden = number !== 2));
      if (task.answer) recall(task.answer);
    }
    draw();
    (task ? find("heading") : find("done").querySelector("h1")).focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  function recall(answer) {
    const ranks = task.shown.map((i) => answer.ranks[i]);
    const order = ranks.map((_, i) => i).filter(() => ranks.length && ranks[0] !== undefined);
    order.sort((i, j) => ranks[i] - ranks[j]);
    places = order.map((i, at) => ({ i, ties: at > 0 && ranks[i] === ranks[order[at - 1]] }));
    margin = answer.margin;
    find("note").value = answer.note;
    find("note-field").hidden = !answer.note;
  }
  function ranksShown() {
    const ranks = new Map();
    places.forEach((place, at) => ranks.set(place.i, place.ties ? ranks.get(places[at - 1].i) : at + 1));
    return ranks;
  }
  function draw(said) {
    const ranks = ranksShown();
    document.querySelectorAll("[data-card]").forEach((own) => {
      const rank = ranks.get(Number(own.dataset.card));
      own.classList.toggle("ranked", rank !== undefined);
      own.querySelector(".rank").textContent = rank === undefined ? "" : `${rank}.`;
    });
    const words = places.map(({ i, ties: tied }, at) => (at ? (tied ? " = " : " > ") : "") + LETTERS[i].toUpperCase());
    const hint = "press the letters of the responses, the best one first";
    find("said").textContent = said ?? (words.length ? words.join("") + (margin ? ", much better" : "") : hint);
    document.querySelector('[data-do="tie"]').setAttribute("aria-pressed", String(ties));
    document.querySelector('[data-do="much"]').setAttribute("aria-pressed", String(Boolean(margin)));
    const total = answered.length + left;
    find("progress").max = Math.max(1, total);
    find("progress").value = answered.length;
    find("count").textContent = `${answered.length} of ${total}`;
    find("unsent").textContent = unsent.length ? `${unsent.length} not sent yet; kept in this browser` : "";
  }

  // What people do.
  const actions = {
    rank(i) {
      if (i >= task.cards.length || places.some((place) => place.i === i)) return;
      places.push({ i, ties: ties && places.length > 0 });
      ties = false;
      draw();
    },
    pair(order, tied, much) {
      places = order.map((i, at) => ({ i, ties: tied && at > 0 }));
      margin = much && !tied ? "much" : "";
      draw();
    },
    tie() {
      ties = places.length > 0 && !ties;
      draw(ties ? "the next one ties with the one before" : undefined);
    },
    much() {
      if (task.cards.length !== 2) return;
      margin = margin ? "" : "much";
      draw();
    },
    erase() {
      places.pop();
      [ties, margin] = [false, ""];
      draw();
    },
    save() {
      const open = task.cards.map((_, i) => i).filter((i) => !places.some((place) => place.i === i));
      if (open.length > 1) {
        draw(`rank ${open.map((i) => LETTERS[i].toUpperCase()).join(", ")} too, or press s to skip`);
        return;
      }
      // The last one follows by itself.
      if (open.length) actions.rank(open[0]);
      const shown = ranksShown();
      const ranks = [];
      task.shown.forEach((own, at) => (ranks[own] = shown.get(at)));
      answer({ ranks, margin });
    },
    skip() {
      document.getElementById("skip").showModal();
    },
    note() {
      find("note-field").hidden = false;
      find("note").focus();
    },
    words() {
      const on = find("cards").classList.toggle("by-words");
      document.querySelector('[data-do="words"]').setAttribute("aria-pressed", String(on));
    },
    help() {
      document.getElementById("guidelines").showModal();
    },
    async back() {
      const before = answered.filter((id) => id !== task?.task_id);
      const at = task && answered.includes(task.task_id) ? answered.indexOf(task.task_id) - 1 : before.length - 1;
      if (at < 0 || !before.length) return draw("there is no task before this one");
      try {
        const found = await fetch(`${base}/tasks/${encodeURIComponent(answered[at])}`);
        if (!found.ok) throw new Error();
        if (task && !answered.includes(task.task_id)) upcoming.unshift(task);
        show(await found.json());
      } catch {
        draw("the task before cannot be loaded now; try again when there is a connection");
      }
    },
  };

  // Sending.
  function answer(given) {
    if (since !== null) seconds += (performance.now() - since) / 1000;
    const whole = {
      queue: facts.queue,
      given_at: Date.now(),
      answer_id: crypto.getRandomValues(new Uint32Array(4)).join("-").slice(0, 64),
      task_id: task.task_id,
      shown: task.shown,
      note: find("note").value,
      seconds: Math.round(seconds * 10) / 10,
      ...given,
    };
    unsent.push(whole);
    localStorage.setItem(`${storage}:${whole.answer_id}`, JSON.stringify(whole));
    if (!answered.includes(task.task_id)) {
      answered.push(task.task_id);
      left = Math.max(0, left - 1);
    }
    show(upcoming.shift());
    send();
  }
  function held() {
    return task ? [task.task_id] : [];
  }
  function take(told) {
    // What was answered here and is not sent yet is answered all the same.
    const waiting = unsent.map((own) => own.task_id);
    answered = [...told.answered, ...waiting.filter((id) => !told.answered.includes(id))];
    const known = new Set([...held(), ...answered]);
    left = told.left - waiting.filter((id) => !told.answered.includes(id)).length;
    // All of them anew: what enough others have answered by now is asked nobody else.
    upcoming = told.tasks.filter((own) => !known.has(own.task_id));
    if (!task && upcoming.length) show(upcoming.shift());
  }
  function complain(sentence) {
    find("mistake").textContent = sentence;
    find("mistake").hidden = !sentence;
  }
  async function send() {
    if (sending) return;
    sending = true;
    let wait = 0;
    while (unsent.length) {
      try {
        const waiting = unsent.slice(1).map((own) => own.task_id);
        const body = JSON.stringify({ ...unsent[0], held: [...held(), ...waiting] });
        const headers = { "content-type": "application/json" };
        const found = await fetch(`${base}/answers`, { method: "POST", headers, body });
        if (found.status >= 500) throw new Error();
        const told = await found.json().catch(() => ({ error: "the link is no longer valid; ask for a new one" }));
        // A link that does not hold any more, or a queue that is gone, is no reason to throw an answer away.
        if ([401, 404].includes(found.status)) {
          complain(told.error);
          break;
        }
        localStorage.removeItem(`${storage}:${unsent.shift().answer_id}`);
        complain(told.error ?? "");
        if (told.tasks) take(told);
        wait = 0;
        draw();
      } catch {
        draw();
        wait = Math.min(10, wait + 1);
        await new Promise((done) => setTimeout(done, 1000 * wait));
      }
    }
    sending = false;
    draw();
  }

  // Keys and buttons.
  const keys = { Enter: "save", "=": "tie", Backspace: "erase", u: "back", s: "skip", n: "note", w: "words", "?": "help" };
  const pairs = { ArrowLeft: [[0, 1], false], ArrowRight: [[1, 0], false], ArrowDown: [[0, 1], true] };
  document.addEventListener("keydown", (event) => {
    const dialog = document.querySelector("dialog[open]");
    if (dialog) {
      if (/^[1-9]$/.test(event.key)) dialog.querySelectorAll(".reasons button")[event.key - 1]?.click();
      return;
    }
    if (event.target.matches("textarea")) {
      if (event.key === "Escape") find("heading").focus();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === "Enter" && event.target.closest("button, a")) return;
    if (event.repeat) return;
    const at = LETTERS.indexOf(event.key);
    if (task && event.key.length === 1 && at >= 0) actions.rank(at);
    else if (task && task.cards.length === 2 && pairs[event.key]) actions.pair(...pairs[event.key], event.shiftKey);
    else if (Object.hasOwn(keys, event.key) && (task || ["u", "?"].includes(event.key))) actions[keys[event.key]]();
    else return;
    event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.reason) {
      // At once, and not when the dialog tells that it is closed: the next key belongs to the next task.
      document.getElementById("skip").close();
      answer({ skipped: button.dataset.reason });
    } else if (button.dataset.letter) actions.rank(LETTERS.indexOf(button.dataset.letter));
    else if (button.dataset.do) actions[button.dataset.do]();
    // After the mouse, Enter saves; after the keyboard it presses the button that has the focus.
    if (event.detail) button.blur();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && since !== null) {
      seconds += (performance.now() - since) / 1000;
      since = null;
    } else if (!document.hidden && since === null) since = performance.now();
  });
  addEventListener("online", send);

  // Tasks that were answered without a connection, before the page was opened again.
  const waiting = new Set(unsent.map((own) => own.task_id));
  upcoming = upcoming.filter((own) => !waiting.has(own.task_id));
  answered = [...answered, ...[...waiting].filter((id) => !answered.includes(id))];
  if (facts.is_closed) complain("this queue is closed: what you answer is kept, but the preferences are written already");
  show(upcoming.shift());
  send();
})();
