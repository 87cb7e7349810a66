"""The encoding of a file is inferred by its letters; what is assumed is recorded; a codec in the config decides."""

from __future__ import annotations

import csv
import io
import random
import time
from pathlib import Path
from typing import Any

import pytest

from fulltune.config import DataConfig, load_config
from fulltune.data.encoding import decode
from fulltune.data.load import Column, Table, load_table
from fulltune.errors import ConfigError, DataError

TEXT = (Column("text", str),)

#: Texts of our own, by the encodings that they are written in.
TEXTS: dict[str, tuple[tuple[str, ...], str]] = {
    "Czech": (
        ("cp1250", "iso8859_2", "mac_latin2", "cp852"),
        "Byl jednou jeden drvoštěp a ten měl tři syny. Nejstarší se jmenoval Matěj, prostřední Jíra a nejmladší, "
        "kterému nikdo neřekl jinak než hloupý Honza, celé dny ležel za pecí. Jednou řekl otec: půjdeš do světa, "
        "synu, a přineseš, co sám nevíš. Honza vzal ranec, políbil maminku a šel. Šel dlouho, až přišel k černému "
        "lesu, kde žila ježibaba.",
    ),
    "Slovak": (
        ("cp1250",),
        "Kde bolo, tam bolo, žil raz jeden kráľ a mal dvanásť dcér. Každú noc odchádzali tajne tancovať, a nikto "
        "nevedel kam. Kráľ sľúbil polovicu kráľovstva tomu, kto to zistí, a mnohí to skúšali.",
    ),
    "Polish": (
        ("cp1250", "iso8859_2", "cp852"),
        "Dawno, dawno temu, za siedmioma górami, żył sobie drwal. Miał on trzech synów: najstarszy był mądry, "
        "średni sprytny, a najmłodszego nazywano głuptasem. Pewnego dnia ojciec rzekł: idźcie w świat i "
        "przynieście źródlaną wodę.",
    ),
    "Hungarian": (
        ("cp1250", "iso8859_2"),
        "Egyszer volt, hol nem volt, volt egyszer egy szegény ember, annak volt három fia. Nagyon szűkösen éltek, "
        "de a legkisebb fiú mindig jókedvű volt, és örült a napfénynek, erdőnek.",
    ),
    "Croatian": (
        ("cp1250",),
        "Živio jednom čovjek koji je imao tri kćeri. Najmlađa je bila najljepša, ali i najtužnija, jer je čekala "
        "da se mladić vrati iz šume.",
    ),
    "German": (
        ("cp1252", "latin-1", "cp1250", "mac_roman", "cp850"),
        "Der Müller hatte drei Söhne und eine schöne Tochter, die größte Freude seines Alters. Eines Tages "
        "wünschte sie, über die Hügel zu gehen, und die Brüder ließen sie nicht aus den Augen.",
    ),
    "French": (
        ("cp1252", "latin-1", "mac_roman", "cp850"),
        "Le garçon a mangé une pâtisserie près du café, puis il est rentré chez lui, très fatigué. Sa mère "
        "l'attendait déjà à la fenêtre, où brûlait une lampe.",
    ),
    "Spanish": (
        ("cp1252",),
        "Había una vez un campesino que tenía una gallina. Un día la gallina puso un huevo de oro; ¿qué pasó "
        "después? El campesino soñó con riquezas y perdió la razón.",
    ),
    "Portuguese": (
        ("cp1252",),
        "Era uma vez um lenhador que não tinha pão nem lenha. A mãe pediu-lhe que fosse à floresta, e lá "
        "encontrou três irmãos que também não comiam há dias.",
    ),
    "Turkish": (
        ("cp1254", "iso8859_9"),
        "Bir varmış bir yokmuş, eski zamanda yoksul bir oduncu yaşarmış. Üç oğlu olan bu adam, çocuklarını çok "
        "sever, onlara iyi öğütler verirmiş.",
    ),
    "Lithuanian": (
        ("cp1257",),
        "Gyveno kartą senis ir senė. Jie turėjo tris sūnus: du protingus, o trečią kvailą. Vieną dieną tėvas "
        "liepė sūnums eiti į girią malkų.",
    ),
    "Russian": (
        ("cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic"),
        "В одной деревне жил мельник, и было у него три дочери. Старшая умела прясть, средняя ткать, а младшая "
        "пела так, что птицы слетались к окну. Однажды пришёл к ним чужой человек и попросил напиться.",
    ),
    "Ukrainian": (
        ("cp1251", "koi8_u"),
        "Жив собі в одному селі мельник, і було в нього троє синів. Найменший вмів грати на сопілці так, що птахи "
        "злітались до вікна їхньої хати.",
    ),
    "Greek": (
        ("cp1253",),
        "Ήταν μια φορά ένας φτωχός μυλωνάς που είχε τρεις κόρες, και η μικρότερη τραγουδούσε ωραία.",
    ),
    "English": (("cp1252",), "He said “no” – and it wasn’t the first time… “Never,” she answered, “will I go there.”"),
}
CASES = [(language, codec) for language, (codecs, _) in TEXTS.items() for codec in codecs]


def read(path: Path, **options: Any) -> Table:
    return load_table(str(path), TEXT, DataConfig(train="x", **options))


@pytest.mark.parametrize(("language", "codec"), CASES, ids=[f"{language}-{codec}" for language, codec in CASES])
def test_a_text_and_each_twelve_words_of_it_are_decoded(language: str, codec: str) -> None:
    text = TEXTS[language][1]
    words = text.split()
    assert decode(text.encode(codec), "a").text == text
    parts = [" ".join(words[start : start + 12]) for start in range(0, max(1, len(words) - 11), 3)]
    wrong = [part for part in parts if decode(part.encode(codec), "a").text != part]
    # Encodings of Mac OS and of DOS need more evidence than twelve words.
    assert codec.startswith(("mac", "iso", "cp8")) or len(wrong) <= len(parts) / 8, wrong


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("これは日本語の文章です。今日はいい天気ですね", "shift_jis"),
        ("今天天气很好，我们去公园玩吧", "gb18030"),
        ("오늘은 날씨가 아주 좋습니다. 공원에 갑시다", "euc_kr"),
    ],
)
def test_encodings_of_several_bytes_are_decoded(text: str, codec: str) -> None:
    assert decode(text.encode(codec), "a").text == text


def test_mostly_ascii_rows_decide_by_their_few_letters(tmp_path: Path) -> None:
    for language, (codecs, text) in TEXTS.items():
        rows = io.StringIO()
        writer = csv.writer(rows)
        writer.writerow(["text", "address", "label"])
        writer.writerows(
            [part.strip(), "https://example.com/a/long/address/in/ascii", "fine"] for part in text.split(".")
        )
        path = tmp_path / f"{language}.csv"
        path.write_bytes(rows.getvalue().encode(codecs[0]))
        assert [row.fields["text"] for row in read(path)] == [
            part.strip() for part in text.split(".") if part.strip()
        ], language


def test_what_is_assumed_is_recorded_with_a_line_to_check(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(f"text\nplain\n{TEXTS['Czech'][1]}\n".replace(", ", " ").encode("cp1250"))
    (form,) = read(tmp_path / "a.csv").info.files
    assert (form.format, form.encoding, form.delimiter) == ("csv", "cp1250", ",")
    assert form.assumed == (
        "it is not UTF-8: read as cp1250, by the letters of Czech (line 3: 'jednou jeden drvoštěp a ten měl tři')",
    )


def test_files_of_one_source_may_have_different_encodings(tmp_path: Path) -> None:
    text = TEXTS["Czech"][1]
    for codec in ("cp1250", "utf-8", "utf-16", "iso8859_2"):
        (tmp_path / f"{codec}.txt").write_bytes(text.encode(codec))
    table = read(tmp_path)
    assert {row.fields["text"] for row in table} == {text}
    assert [form.encoding for form in table.info.files] == ["cp1250", "iso8859_2", "utf-16", "utf-8"]


def test_files_in_one_encoding_are_one_assumption(tmp_path: Path) -> None:
    for number, part in enumerate(TEXTS["Russian"][1].split(". ")[:3]):
        (tmp_path / f"{number}.txt").write_bytes(f"{number}\n{part}".encode("cp1251"))
    (tmp_path / "a.txt").write_text("plain")
    [assumed] = [form.assumed for form in read(tmp_path).files if form.assumed]
    assert "read as cp1251, by the letters of Russian" in assumed[0]
    assert assumed[0].endswith("; 2 more files are read in the same way")


def test_a_rival_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Antonín Dvořák".encode("cp1250")[9:])
    (assumed,) = read(path).files[0].assumed
    assert "fits almost as well" in assumed
    assert "set data.encoding" in assumed


def test_a_codec_in_the_config_decides_and_a_mark_overrules_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ìšè".encode("cp1252"))
    assert read(path, encoding="cp1250")[0].fields["text"] == "ěšč"
    assert read(path, encoding="cp1252")[0].fields["text"] == "ìšè"
    path.write_bytes("ěšč".encode("utf-8-sig"))
    assert read(path, encoding="cp1250")[0].fields["text"] == "ěšč"
    path.write_bytes(b"plain\nand \x98")
    with pytest.raises(DataError, match=r"a\.txt:2: byte 0x98 at offset 10 is not .*expected text in .*data\.encoding"):
        read(path, encoding="cp1251")


def test_an_unknown_codec_is_refused_with_the_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"data\.encoding is 'cp125'; expected auto, or a codec.*did you mean 'cp125"):
        load_config({"model": "gpt2", "task": "causal-lm", "data": {"train": "x", "encoding": "cp125"}})
    with pytest.raises(ConfigError, match=r"data\.encoding is 'base64'"):
        load_config({"model": "gpt2", "task": "causal-lm", "data": {"train": "x", "encoding": "base64"}})


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(random.Random(1).randbytes(2000))
    with pytest.raises(DataError, match="is not UTF-8; expected text in a known encoding"):
        read(path)


def test_lines_of_two_encodings_in_one_file_are_bad_rows(tmp_path: Path) -> None:
    lines = [
        f"{part.strip()}".encode("cp1250" if number % 3 == 1 else "utf-8")
        for number, part in enumerate(TEXTS["Czech"][1].replace(",", "").split("."))
    ]
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\n" + b"\n".join(lines[:5]))
    table = read(path)
    assert len(table) == 3
    assert [problem.where for problem in table.problems] == ["a.csv:3", "a.csv:6"]


def test_signs_that_are_frequent_in_english_do_not_outweigh_its_words() -> None:
    text = "The supplier’s notice—“in writing”—was sent on [***] and the buyer didn’t reply… " * 200
    assert decode(text.encode("cp1252"), "a").codec == "cp1252"
    assert decode(text.encode("cp1252")[:80], "a").codec == "cp1252"


def test_long_lines_are_decoded_quickly() -> None:
    data = ("plain words " * 200_000 + "\nDvořák přišel domů\n").encode("cp1250")
    start = time.process_time()
    assert decode(data, "a").codec == "cp1250"
    assert time.process_time() - start < 5
