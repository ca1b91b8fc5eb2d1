"""Word lists for token-set enrichment: a few everyday words for each theme."""

_BOYS = (
    "James John Robert Michael William David Richard Joseph Thomas Charles Christopher "
    "Daniel Matthew Anthony Mark Donald Steven Paul Andrew Joshua Kenneth Kevin Brian "
    "George Timothy Ronald Edward Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan "
    "Stephen Larry Justin Scott Brandon Benjamin Samuel Gregory Alexander Patrick Frank "
    "Raymond Jack Dennis Jerry"
)

_GIRLS = (
    "Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy "
    "Betty Sandra Margaret Ashley Kimberly Emily Donna Michelle Carol Amanda Melissa "
    "Deborah Stephanie Rebecca Laura Helen Sharon Cynthia Kathleen Amy Angela Shirley "
    "Anna Brenda Pamela Emma Nicole Samantha Katherine Christine Rachel Carolyn Janet "
    "Catherine Maria Heather Diane Julie"
)

_WORDS = {
    "1910's": (
        "war empire trenches suffrage telegraph zeppelin armistice Titanic gas "
        "mustard front revolution czar Bolshevik Kaiser"
    ),
    "1920's": (
        "jazz flapper prohibition speakeasy radio gangster charleston gatsby bootleg "
        "stocks silent talkies harlem gin"
    ),
    "1930's": (
        "depression dust unemployment swing soup strike fascism nylon monopoly dole "
        "bank relief gangster"
    ),
    "1940's": (
        "war bomb radar atomic holocaust allies ration tank nuclear victory blitz "
        "Normandy Stalin Churchill"
    ),
    "1950's": (
        "television rock suburb sputnik diner Korea Elvis polio jukebox drive cold McCarthy Marilyn"
    ),
    "1960's": (
        "moon hippie Beatles Vietnam Kennedy Woodstock peace protest civil miniskirt "
        "Apollo space Cuba"
    ),
    "1970's": (
        "disco Watergate oil Nixon punk polyester feminism hostage inflation Bowie Abba vinyl"
    ),
    "1980's": (
        "Reagan Thatcher MTV arcade Walkman Atari AIDS neon yuppie Chernobyl Pac "
        "Madonna synth Berlin"
    ),
    "1990's": (
        "internet grunge Clinton email Nirvana Windows Netscape Mandela Friends pager "
        "dial web Spice"
    ),
    "2000's": (
        "Google iPod terror Facebook Iraq Bush wiki blog Enron hybrid YouTube recession MySpace"
    ),
    "2010's": (
        "Instagram Uber Trump Brexit selfie drone Bitcoin Snapchat emoji tweet streaming Tesla meme"
    ),
    "colors": (
        "red green blue yellow orange purple black white brown pink grey gray violet "
        "silver gold scarlet crimson turquoise beige"
    ),
    "positive_words": (
        "good great happy excellent wonderful love joy beautiful success perfect "
        "pleasant brilliant delight kind best win hope amazing"
    ),
    "negative_words": (
        "bad terrible sad awful horrible hate pain ugly failure wrong cruel disaster "
        "worst lose fear poor evil broken"
    ),
    "emotions": (
        "joy anger fear sadness love shame guilt envy pride disgust surprise "
        "happiness hope grief jealousy hatred relief"
    ),
    "boys_names": _BOYS,
    "girls_names": _GIRLS,
    "spanish_words": (
        "hola gracias amigo casa perro gato libro agua comida familia trabajo tiempo "
        "noche día mujer hombre niño ciudad amor vida"
    ),
    "french_words": (
        "bonjour merci ami maison chien chat livre eau fromage famille travail temps "
        "nuit jour femme homme enfant ville amour vie"
    ),
    "neuroscience_terms": (
        "neuron synapse axon dendrite cortex hippocampus amygdala dopamine serotonin "
        "glia myelin brain cerebellum thalamus neural receptor spike"
    ),
    "economics_terms": (
        "inflation market demand supply price tax trade tariff interest capital labor "
        "profit monopoly recession deficit currency unemployment"
    ),
    "capital_cities": (
        "London Paris Berlin Madrid Rome Tokyo Beijing Moscow Cairo Ottawa Canberra "
        "Vienna Athens Lisbon Dublin Oslo Stockholm Warsaw Delhi Washington"
    ),
    "countries": (
        "France Germany Spain Italy Japan China Russia Egypt Canada Australia Austria "
        "Greece Portugal Ireland Norway Sweden Poland India Brazil Mexico Kenya "
        "Nigeria"
    ),
    "jewish_last_names": (
        "Cohen Levy Goldberg Friedman Shapiro Katz Kaplan Rosenberg Goldstein "
        "Weinstein Bernstein Rosen Greenberg Levin Epstein Feldman"
    ),
    "ologies": (
        "biology geology psychology sociology theology anthropology archaeology "
        "astrology ecology pathology neurology zoology cardiology mythology "
        "physiology oncology"
    ),
}

WORD_LISTS: dict[str, list[str]] = {name: words.split() for name, words in _WORDS.items()}
BOYS_NAMES = WORD_LISTS["boys_names"]
GIRLS_NAMES = WORD_LISTS["girls_names"]
