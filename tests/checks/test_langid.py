"""Language identification against langdetect itself, with seed 0 and its profiles in sorted order."""

import functools
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
from langdetect.lang_detect_exception import LangDetectException

from hir_jax.checks import langid

BENCHMARKS = Path(__file__).parents[2] / "../shared/benchmarks"
RECORDED = sorted(BENCHMARKS.glob("if*/responses.*.jsonl"))

SENTENCES = {
    "af": "Die kinders speel elke middag buite in die tuin en kom eers teen die aand huis toe.",
    "ar": "ذهبنا أمس إلى السوق واشترينا خبزا وجبنا وبعض الفواكه الطازجة.",
    "bg": "Вчера отидохме на пазара и купихме хляб, сирене и малко пресни плодове.",
    "bn": "গতকাল আমরা বাজারে গিয়ে রুটি আর কিছু ফল কিনেছি।",
    "ca": "Ahir vam anar al mercat i vam comprar pa, formatge i una mica de fruita fresca.",
    "cs": "Včera jsme šli na trh a koupili jsme chléb, sýr a trochu čerstvého ovoce.",
    "cy": "Aethom i'r farchnad ddoe a phrynu bara, caws ac ychydig o ffrwythau ffres.",
    "da": "I går gik vi på markedet og købte brød, ost og lidt frisk frugt.",
    "de": "Gestern gingen wir auf den Markt und kauften Brot, Käse und etwas frisches Obst.",
    "el": "Χθες πήγαμε στην αγορά και αγοράσαμε ψωμί, τυρί και λίγα φρέσκα φρούτα.",
    "en": "Yesterday we went to the market and bought bread, cheese and some fresh fruit.",
    "es": "Ayer fuimos al mercado y compramos pan, queso y un poco de fruta fresca.",
    "et": "Eile käisime turul ja ostsime leiba, juustu ja veidi värskeid puuvilju.",
    "fa": "دیروز به بازار رفتیم و نان و پنیر و کمی میوه تازه خریدیم.",
    "fi": "Eilen menimme torille ja ostimme leipää, juustoa ja vähän tuoreita hedelmiä.",
    "fr": "Hier, nous sommes allés au marché et nous avons acheté du pain, du fromage et des fruits.",
    "he": "אתמול הלכנו לשוק וקנינו לחם, גבינה וקצת פירות טריים.",
    "hi": "कल हम बाज़ार गए और रोटी, पनीर और कुछ ताज़े फल ख़रीदे।",
    "hu": "Tegnap elmentünk a piacra, és vettünk kenyeret, sajtot meg egy kis friss gyümölcsöt.",
    "it": "Ieri siamo andati al mercato e abbiamo comprato pane, formaggio e un po' di frutta fresca.",
    "ja": "昨日は市場へ行って、パンとチーズと新鮮な果物を買いました。",
    "ko": "어제 우리는 시장에 가서 빵과 치즈와 신선한 과일을 샀습니다.",
    "lt": "Vakar nuėjome į turgų ir nusipirkome duonos, sūrio ir šviežių vaisių.",
    "nl": "Gisteren gingen we naar de markt en kochten we brood, kaas en wat vers fruit.",
    "pl": "Wczoraj poszliśmy na targ i kupiliśmy chleb, ser i trochę świeżych owoców.",
    "pt": "Ontem fomos ao mercado e comprámos pão, queijo e alguma fruta fresca.",
    "ro": "Ieri am fost la piaţă şi am cumpărat pâine, brânză şi câteva fructe proaspete.",
    "ru": "Вчера мы пошли на рынок и купили хлеб, сыр и немного свежих фруктов.",
    "sv": "I går gick vi till torget och köpte bröd, ost och lite färsk frukt.",
    "sw": "Jana tulikwenda sokoni tukanunua mkate, jibini na matunda kidogo.",
    "ta": "நேற்று நாங்கள் சந்தைக்குச் சென்று ரொட்டியும் பழங்களும் வாங்கினோம்.",
    "th": "เมื่อวานเราไปตลาดและซื้อขนมปัง ชีส และผลไม้สด",
    "tr": "Dün pazara gittik ve ekmek, peynir ve biraz taze meyve aldık.",
    "uk": "Учора ми пішли на ринок і купили хліб, сир та трохи свіжих фруктів.",
    "vi": "Hôm qua chúng tôi đi chợ và mua bánh mì, phô mai và một ít trái cây tươi.",
    "zh-cn": "昨天我们去市场买了面包、奶酪和一些新鲜水果。",
}

ODD = (
    "", " ", "\n\n", "12 + 30 = 42", "...", "a", "A", "AA", "b)", "ok", "OK then", "é", "ß", "中", "あ", "한", "👍",
    "\ud800", "false", "NASA and ESA", "ALL OF THIS IS WRITTEN IN CAPITALS.", "iPhone McDonald XMLHttp", "x  y   z",
    "a\u0300 b\u0301", "[A]^_`{z}", "see http://example.org/a/b?c=d", "https://", "mail me: some.one@example.org", "a@b",
    "a@bc and @ alone", "cafe\u0301 tie\u0302\u0301ng Vie\u0323t", "\u0219i \u021bara", "مرحبا hello",
    "ελληνικά with more English words than Greek ones", "Слово word Слово", "ａｂｃ ｄｅｆ",
    "ㄅㄆㄇ", "カタカナ", "昨天我們去市場買了麵包、乳酪和一些新鮮水果。", "\u06cc\u06cc",
    "ạ ẹ ị", "ﬁne", "İstanbul ıı", "a\u2019b\u2013c", "ªºµ",
)  # fmt: skip


@functools.cache
def _factory():
    factory = DetectorFactory()
    files = sorted(path for path in Path(PROFILES_DIRECTORY).iterdir() if not path.name.startswith((".", "_")))
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in files])
    factory.set_seed(0)
    return factory


def langdetects(text):
    detector = _factory().create()
    detector.append(text)
    try:
        return detector.detect()
    except LangDetectException:
        return None


def differing(texts):
    found = [(text, langid.detect(text), langdetects(text)) for text in texts]
    return [(text[:60], ours, theirs) for text, ours, theirs in found if ours != theirs]


def test_sentences_of_many_languages():
    assert {code: langid.detect(text) for code, text in SENTENCES.items()} == {code: code for code in SENTENCES}
    assert differing(SENTENCES.values()) == []
    assert differing(text.upper() for text in SENTENCES.values()) == []
    assert differing(text[start:stop] for text in SENTENCES.values() for start, stop in ((0, 5), (3, 12))) == []


def test_mixed_texts():
    texts = list(SENTENCES.values())
    assert differing(f"{one}\n{other}" for one, other in itertools.pairwise(texts)) == []
    assert differing(f"{one[:20]} {other}" for one, other in zip(texts, texts[7:])) == []
    assert differing([" ".join(texts), " ".join(texts[::-1])]) == []


def test_odd_texts():
    assert differing(ODD) == []
    assert langid.detect("") is langid.detect("12 + 30 = 42") is None


def test_texts_of_no_language():
    english, thai = SENTENCES["en"], SENTENCES["th"]
    assert differing("".join(pair) for pair in zip(english, thai)) == []
    assert differing(letter * 3 + other for letter in "qxzw" for other in "jkvy") == []


def test_text_past_ten_thousand_characters_is_not_read():
    english, german = SENTENCES["en"] + " ", SENTENCES["de"] + " "
    texts = [english * 120 + german * 400, " " * 9990 + german, ("http://example.org/ " * 600) + german]
    assert differing(texts) == []
    assert langid.detect(english * 130 + german * 400) == "en" and langid.detect(" " * 10000 + german) is None


@settings(max_examples=60)
@given(st.text(st.characters(), max_size=40) | st.text("aAbzZéßşẠあ亜カ가\u0301дЖα. '@:/", max_size=40))
def test_any_text(text):
    assert langid.detect(text) == langdetects(text)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(" ".join(SENTENCES.values()).split()), max_size=30).map(" ".join))
def test_any_mixture_of_words(text):
    assert langid.detect(text) == langdetects(text)


def _recorded():
    if not RECORDED:
        pytest.skip("the benchmark fixtures (../shared/benchmarks) are absent")
    return [json.loads(line)["response"] for path in RECORDED for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_sixth_of_the_recorded_responses():
    assert differing(_recorded()[::6]) == []


@pytest.mark.slow
def test_all_recorded_responses():
    texts = _recorded()
    assert len(texts) == 2 * (539 + 293)
    assert differing(texts) == []
