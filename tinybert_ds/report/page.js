// Under the pointer: a line at the step, and each curve's value there beside its name. At rest: the last values.
for (const figure of document.querySelectorAll("figure:not(.still)")) {
  const chart = figure.querySelector("svg.chart");
  const { x: [low, high, begin, end], lines } = JSON.parse(figure.querySelector("script").textContent);
  const outputs = figure.querySelectorAll("output");
  const cursor = document.createElementNS(chart.namespaceURI, "line");
  cursor.setAttribute("class", "cursor");
  const show = (step) => lines.forEach((points, index) => {
    const nearest = points.reduce((best, point) =>
      Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best);
    outputs[index].textContent = `${Number(nearest[1].toPrecision(4))} at ${nearest[0]}`;
  });
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const place = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    const inside = Math.min(end, Math.max(begin, place));
    for (const [name, value] of [["x1", inside], ["x2", inside], ["y1", 10], ["y2", 224]]) {
      cursor.setAttribute(name, value);
    }
    chart.append(cursor);
    show(low + (inside - begin) / (end - begin) * (high - low));
  });
  chart.addEventListener("pointerleave", () => { cursor.remove(); show(high); });
  show(high);
}
document.documentElement.dataset.charts = document.querySelectorAll("svg.chart").length;
