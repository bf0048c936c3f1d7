"""Progress of a run: a bar on a terminal, elsewhere a log line every few steps."""

import logging
import sys
from contextlib import suppress

from tqdm import tqdm

from alignkd.student_train.metrics.file import Metrics

logger = logging.getLogger(__name__)


class Progress:
    """Shows finished steps, on the first rank only."""

    def __init__(self, *, done: int, steps: int, log_every: int, show: bool) -> None:
        self.steps, self.log_every, self.show = steps, log_every, show
        bar = show and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=done, unit="step") if bar else None

    def update(self, line: Metrics) -> None:
        """Show the metrics of one step; errors are ignored, because the terminal may have been closed."""
        with suppress(OSError):
            self._show(line)

    def _show(self, line: Metrics) -> None:
        step, loss = line["step"], line["loss"]
        text = f"loss {loss:.4f}" if loss is not None else "skipped: loss or gradient not finite"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif self.show and step is not None and (step % self.log_every == 0 or step == self.steps):
            logger.info("step %d of %d: %s, %.2f s/step", step, self.steps, text, line["seconds"])

    def show_validation(self, line: Metrics, figure: str) -> None:
        """Show the figure of a validation; errors are ignored as in `update`."""
        value, best = line[figure], line["best"]
        text = f"validation at step {line['step']}: {figure} {'not finite' if value is None else f'{value:.4f}'}"
        if best is not None and line["best_step"] != line["step"]:
            text += f" (best {best:.4f} at step {line['best_step']})"
        text += f", {line['samples']} samples in {line['seconds']:.1f} s"
        with suppress(OSError):
            if self._bar is not None:
                self._bar.write(text, file=sys.stderr)
            elif self.show:
                logger.info("%s", text)

    def close(self) -> None:
        """Close the bar and leave it visible."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()
