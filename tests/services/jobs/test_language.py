"""Which language a text is in."""

from __future__ import annotations

import pytest

from services.jobs.language import language_of

TEXTS = {
    "en": "Good morning. Anna said that the release is planned for Friday, but the tests are not finished. We will "
          "meet again on Monday and she will write the notes.",
    "fr": "Bonjour à tous. Anna a dit que la livraison est prévue pour vendredi, mais les tests ne sont pas terminés. "
          "Nous allons nous revoir lundi et elle écrira le compte rendu.",
    "de": "Guten Morgen. Anna hat gesagt, dass die Auslieferung für Freitag geplant ist, aber die Tests sind noch "
          "nicht fertig. Wir treffen uns am Montag wieder und sie schreibt das Protokoll.",
    "it": "Buongiorno a tutti. Anna ha detto che il rilascio è previsto per venerdì, ma i test non sono ancora finiti. "
          "Ci vediamo di nuovo lunedì e lei scriverà il verbale della riunione.",
    "es": "Buenos días. Anna dijo que el lanzamiento está previsto para el viernes, pero las pruebas no están "
          "terminadas. Nos veremos otra vez el lunes y ella escribirá el acta.",
}
OTHERS = {
    "Portuguese": "Bom dia a todos. A Ana disse que o lançamento está previsto para sexta-feira, mas os testes ainda "
                  "não estão terminados. Vamos nos encontrar de novo na segunda e ela vai escrever a ata.",
    "Dutch": "Goedemorgen allemaal. Anna zei dat de uitgave voor vrijdag gepland is, maar de tests zijn nog niet "
             "klaar. We zien elkaar maandag weer en zij schrijft het verslag van de vergadering.",
    "Catalan": "Bon dia a tothom. L'Anna va dir que el llançament està previst per divendres, però les proves no s'han "
               "acabat. Ens tornarem a veure dilluns i ella escriurà l'acta de la reunió.",
    "made up": "badego bakine zorupo limana turego polido",
    "none": "12:30 – 14:00 !!!",
    "two at once": TEXTS["en"] + TEXTS["de"],
}


@pytest.mark.parametrize("language", TEXTS)
def test_what_skynet_knows_is_known(language: str) -> None:
    assert language_of(TEXTS[language]) == language
    assert language_of(TEXTS[language].upper().replace("'", "’")) == language


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_clear_is_unknown(name: str) -> None:
    assert language_of(OTHERS[name]) is None


def test_names_and_numbers_in_between_do_not_matter() -> None:
    said = "\n".join(f"[00:{n:02}:07] Anna Kowalska: {text}" for n, text in enumerate([TEXTS["fr"]] * 5))
    assert language_of(said) == "fr"
