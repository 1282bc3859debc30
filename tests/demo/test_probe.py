import pytest, traceback
from demo.app import Family, build_app
from PIL import Image
def test_probe(checkpoints, own_cache, picture):
    fam = Family.load(checkpoints)
    app = build_app(fam)
    fns = {f.api_name: f.fn for f in app.fns.values()}
    print(list(fns))
    def t(name, call):
        try:
            r = call(); r = list(r) if hasattr(r,'__next__') else r
            print(name, "->", repr(r)[-160:])
        except BaseException as e:
            print(name, "!!", type(e).__name__, str(e)[:200])
    ask = fns["ask"]; draw = fns["redraw"]
    t("image in text no pic", lambda: ask("what is <image> here", None, []))
    t("2 image in text", lambda: ask("what is <image><image> here", picture, []))
    t("only image", lambda: ask("<image>", picture, []))
    t("long", lambda: ask("what color is it "*3000, picture, []))
    t("special", lambda: ask("</s><|user|><s>", picture, []))
    t("draw long", lambda: draw("a red circle "*1000, 1, 0, 5, 3))
    t("draw seed none", lambda: draw("a red circle", 1, None, 5, 3))
    t("draw seed huge", lambda: draw("a red circle", 1, 10**30, 5, 3))
    t("draw seed neg", lambda: draw("a red circle", 1, -5, 5, 3))
    t("draw nul", lambda: draw("\x00 \ud83d", 1, 0, 5, 3))
    t("cleared", lambda: ask(None, None, []))
    t("draw none", lambda: draw(None, 1, 0, 5, 3))
    t("history none", lambda: ask("what", None, None))
