"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const width = data.width, left = data.left, right = data.right;
  const hidden = new Set();

  // the last point at or before a step, or the first one
  function at(points, step) {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (points[middle][0] <= step) low = middle; else high = middle - 1;
    }
    const next = points[low + 1];
    return next && Math.abs(next[0] - step) < Math.abs(points[low][0] - step) ? next : points[low];
  }

  function show(svg, step) {
    const chart = data.charts[Number(svg.dataset.chart)];
    const low = Number(svg.dataset.low), high = Number(svg.dataset.high);
    const readout = svg.parentElement.querySelector(".readout");
    const cursor = svg.querySelector(".cursor");
    const x = left + (step - low) / (high - low) * (width - right - left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    readout.replaceChildren();
    readout.classList.toggle("left", x > width / 2);
    for (const line of chart) {
      if (hidden.has(line.run)) continue;
      const [where, value] = at(line.points, step);
      const part = document.createElement("span");
      part.className = "c" + line.run % data.colours;
      const kind = line.validation ? " validation" : "";
      part.textContent = data.runs[line.run] + kind + " @" + where + ": " + Number(value.toPrecision(6));
      readout.append(part);
    }
    svg.dataset.step = step;
  }

  function clear(svg) {
    svg.querySelector(".cursor").setAttribute("visibility", "hidden");
    svg.parentElement.querySelector(".readout").replaceChildren();
  }

  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const low = Number(svg.dataset.low), high = Number(svg.dataset.high);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * width;
      const step = Math.round(low + (x - left) / (width - right - left) * (high - low));
      show(svg, Math.min(high, Math.max(low, step)));
    });
    svg.addEventListener("pointerleave", () => clear(svg));
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      const stride = Math.max(1, Math.round((high - low) / 100));
      const step = Number(svg.dataset.step ?? low) + move * stride;
      show(svg, Math.min(high, Math.max(low, step)));
    });
  }

  for (const box of document.querySelectorAll("ul.runs input")) {
    box.addEventListener("change", () => {
      const run = Number(box.value);
      if (box.checked) hidden.delete(run); else hidden.add(run);
      for (const drawn of document.querySelectorAll('figure [data-run="' + run + '"]')) {
        drawn.classList.toggle("hidden", !box.checked);
      }
    });
  }
})();
