"""The page itself: a picture, a task, a button, and a slider between before and after."""

from __future__ import annotations

import html
import sys
import traceback
from pathlib import Path
from typing import Any

import gradio as gr

from .restoring import Restorer, Result
from .threads import Threads

TITLE = "irnext: restore a photograph"
INTRODUCTION = """# Restore a photograph
Drop a picture, say what is wrong with it, and compare.
{limits}
"""
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]  # of the visitor's machine
CSS = """
.gradio-container {width: min(72rem, 100%) !important; max-width: none !important; margin: 0 auto !important}
#result:not(:has(#status p)) #download {display: none}
"""
SESSIONS = 256  # visitors of whom Gradio remembers the page's state
CLEAR = "() => [null, '', null]"
# What restoring may fail with for reasons that the message tells; MemoryError, too, where it is raised.
EXPECTED = (ValueError, ArithmeticError, MemoryError, OSError)


def build(restorer: Restorer, threads: Threads, limits: str, about: str, queue: int) -> gr.Blocks:
    """The page, also callable as `/restore` by Gradio's clients.

    Args:
        restorer: what restores, whose models are the choices.
        threads: where it does so.
        limits: a sentence on what is taken.
        about: what computes, for the line below a result.
        queue: calls that may wait; one is served at a time.
    """

    async def restore(picture: dict[str, Any] | None, task: str) -> tuple[tuple[str, str], str, str]:
        path = picture and picture["path"]
        if not path:
            raise refusal("there is no picture yet: drop one first")
        try:
            result = await threads.run(restorer, Path(path), task)
        except EXPECTED as error:
            raise refusal(tell(error)) from None
        except Exception:
            traceback.print_exc()
            raise refusal("restoring failed; the server's log says why") from None
        return (str(result.before), str(result.after)), describe(result, task, about), str(result.picture)

    names = list(restorer.models)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION.format(limits=limits))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                # Gradio's own preprocessing would decode it before any check.
                picture = gr.Image(
                    type="filepath", sources=["upload", "clipboard"], label="Picture", buttons=[], height=320
                )
                task = gr.Radio(names, value=names[0], label="Task")
                button = gr.Button("Restore", variant="primary")
            with gr.Column(scale=3, min_width=300, elem_id="result"):
                slider = gr.ImageSlider(
                    label="Before and after", interactive=False, buttons=["fullscreen"], max_height=600
                )
                status = gr.Markdown(label="Status", elem_id="status")
                download = gr.DownloadButton("Download in full resolution", elem_id="download")
        outputs = [slider, status, download]
        button.click(
            restore,
            [picture, task],
            outputs,
            api_name="restore",
            api_description="Restore a picture: gives before and after as shown, what was done, the result.",
            preprocess=False,
            concurrency_limit=1,
        )
        picture.change(None, None, outputs, js=CLEAR)
    page.state_session_capacity = SESSIONS
    return page.queue(max_size=queue, api_open=False)


def refusal(reason: str) -> gr.Error:
    """An error that is shown to the visitor, as text, and not logged."""
    return gr.Error(html.escape(reason, quote=False), title="Not restored", print_exception=False)


def tell(error: Exception) -> str:
    """The message of an error, without paths of the server."""
    if isinstance(error, OSError):
        print(f"irnext: error: {error}", file=sys.stderr)
        return f"the server cannot do that now: {error.strerror or 'its files cannot be used'}"
    return str(error)


def describe(result: Result, task: str, about: str) -> str:
    """What was done, in one line of Markdown."""
    width, height = result.size
    return f"{width}x{height} pixels restored in **{result.milliseconds:.0f} ms** ({task}, {about})"
