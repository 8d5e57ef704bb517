
/* Words that only one of two texts has, by their longest common subsequence; each text as a list of parts. */
function different(one, other) {
  const a = words(one), b = words(other);
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start].trim() === b[start].trim()) start++;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end).trim() === b.at(-1 - end).trim()) end++;
  const m = a.length - start - end, n = b.length - start - end;
  const common = [new Set(), new Set()];
  if (m * n <= 4e6) {
    const [x, y] = [a, b].map((list) => list.slice(start, list.length - end).map((word) => word.trim()));
    const length = Array.from({ length: m + 1 }, () => new Uint16Array(n + 1));
    for (let i = m - 1; i >= 0; i--)
      for (let j = n - 1; j >= 0; j--)
        length[i][j] = x[i] === y[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    for (let i = 0, j = 0; i < m && j < n; )
      if (x[i] === y[j]) { common[0].add(start + i++); common[1].add(start + j++); }
      else if (length[i + 1][j] >= length[i][j + 1]) i++;
      else j++;
  }
  const same = start + end + common[0].size;
  if (same < Math.max(a.length, b.length) / 5) return [one, other]; // two different texts: marks would say nothing
  return [a, b].map((list, side) => {
    const parts = [];
    list.forEach((word, index) => {
      const plain = index < start || index >= list.length - end || common[side].has(index);
      const last = parts.at(-1); // neighbours of a kind are one part: a page cannot take a hundred thousand at once
      if (plain) typeof last === "string" ? parts.push(parts.pop() + word) : parts.push(word);
      else if (last?.mark) last.mark += word;
      else parts.push({ mark: word });
    });
    return parts.flatMap((part) => part.mark ? [{ mark: part.mark.trimEnd() }, part.mark.slice(part.mark.trimEnd().length)] : part);
  });
}

/* Words with the spaces behind them, in scripts without spaces too. */
function words(text) {
  const parts = [];
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(text))
    if (parts.length && !segment.trim()) parts.push(parts.pop() + segment);
    else parts.push(segment);
  return parts;
}
