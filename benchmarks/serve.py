"""How soon the page of `m2dprep serve` shows its first clips, and the answer to a question: in a real Chromium.

usage: python benchmarks/serve.py [--clips 10000]

The store is made up, and so is the text side: what is measured is the server and the page. Times are those of the
page's own clock, from the start of the navigation or of a question to the list being there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from m2dprep.evaluation.serving.opening import Shown  # noqa: E402
from tests.evaluation.serving.browser import chromium  # noqa: E402
from tests.evaluation.serving.made_server import served  # noqa: E402
from tests.evaluation.serving.made_store import KINDS, embeddings_of, write_map, write_store  # noqa: E402

ROUNDS = 5
# Resolves when the list has changed and been painted.
ASKED = """
const [text, done] = arguments, start = performance.now();
$("words").value = text;
askWords().then(() => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start))));
"""
DRAWN = """
const done = arguments[0], start = performance.now();
map.zoomAt(map.frame.w / 2, map.frame.h / 2, 1.1);
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
"""


def main(clips: int) -> None:
    kinds = [number % 4 for number in range(clips)]
    names = [f"{KINDS[kind]}/{number:06d}.wav" for number, kind in enumerate(kinds)]
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "store", names, embeddings_of(kinds))
        write_map(store, kinds)
        with served(Shown([store])) as (_, address, _), chromium() as page:
            firsts, answers, frames = [], [], []
            for number in range(ROUNDS):
                page.open(address)
                firsts.append(page.run("performance.getEntriesByName('first list')[0].startTime"))
                page.until("map.rows.length > 0")
                answers.append(page.browser.execute_async_script(ASKED, f"a {KINDS[number % 4]} {number}"))
                frames.append(page.browser.execute_async_script(DRAWN))
    for what, times in (("first list", firsts), ("answer to words", answers), ("map drawn anew", frames)):
        best, middle = min(times), sorted(times)[ROUNDS // 2]
        print(f"{clips:,} clips, {what}: {best:.0f} ms at best, {middle:.0f} ms in the middle")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    main(parser.parse_args().clips)
