"""Pictures of widgets as the site serves them: the same pixels in half the bytes, and described. The notebooks keep their PNGs."""
import base64
import io

from PIL import Image

WIDGETS = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"


def pack(png):
    """A PNG's picture as lossless WebP, which every browser of today shows."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(png)).save(packed, "WEBP", lossless=True, quality=80)  # "quality" is effort here
    return packed.getvalue()


def pictures(state, name):
    """The pictures in a widget."""
    model = state[name]
    if model["model_name"] == "ImageModel":
        yield model
    for child in model["state"].get("children", []):
        yield from pictures(state, child.removeprefix("IPY_MODEL_"))


def prepare(notebook):
    """Pack and describe the pictures of a notebook's widgets, which stand in the page itself."""
    state = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    for model in state.values():
        model["state"] = {key: value for key, value in model["state"].items() if value is not None}  # None is what is meant anyway
        if model["model_name"] == "ImageModel" and model["state"]["format"] == "png":
            for buffer in model["buffers"]:
                buffer["data"] = base64.b64encode(pack(base64.b64decode(buffer["data"]))).decode()
            model["state"]["format"] = "webp"
    for cell in notebook.cells:
        alternative = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
        for view in (output.get("data", {}).get(VIEW) for output in cell.get("outputs", [])):
            for model in pictures(state, view["model_id"]) if view and alternative else []:
                model["state"] |= {"description": "", "tooltip": f"{alternative} ({model['state']['tooltip']})"}
