from html.parser import HTMLParser

from sar_gen.html_page import html_page


class Reader(HTMLParser):
    """Collects the text of each tag."""

    def __init__(self):
        super().__init__()
        self.texts = {}
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "every tag is closed"

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


def test_a_title_is_text_and_every_tag_is_closed():
    reader = Reader()
    reader.feed(html_page("forest <b> & gorge", "p { color: red }", "<p>two patches</p>"))
    assert not reader.open
    assert reader.texts["title"] == "forest <b> & gorge"
    assert reader.texts["style"] == "p { color: red }"
    assert reader.texts["p"] == "two patches"
