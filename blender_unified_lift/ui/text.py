# SPDX-License-Identifier: GPL-3.0-or-later
"""Text of any length in panels: Blender's labels have one line and cut it."""

import re
import textwrap

from bpy.types import Context, UILayout

LETTER_WIDTH = 6.8  # pixels of Blender's interface font on average, at scale 1
BORDER_WIDTH = 64  # pixels of icon and margins beside a text
_WORD_END = re.compile(r"(\s+|(?<=[^\s/\\])(?=[/\\]))")


def draw_text(layout: UILayout, context: Context, text: str, icon: str, taken: int = 0) -> None:
    """A text of any length, in as many lines as the region needs for it.

    Args:
        layout: where to draw.
        context: of the panel.
        text: what to draw.
        icon: before the first line.
        taken: pixels of the line that other things need.
    """
    scale = context.preferences.system.ui_scale
    width = context.region.width / scale - BORDER_WIDTH - taken
    column = layout.column(align=True)
    column.scale_y = 0.8
    for number, line in enumerate(wrapped(text, int(width / LETTER_WIDTH))):
        column.label(text=line, icon="BLANK1" if number else icon)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` letters; paths go on with a slash, longer words are cut."""
    wrapper = textwrap.TextWrapper(max(width, 10), break_on_hyphens=False)
    wrapper.wordsep_simple_re = _WORD_END
    return wrapper.wrap(text) or [""]
