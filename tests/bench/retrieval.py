"""310 documents and 150 questions with the document that answers each: the same ones on every machine.

Three kinds, 50 questions each. *Paraphrases*: a question that says it in other words than its document. *Codes*: one
part of a store among 200 whose descriptions hardly differ. *Forms*: words in other forms, among 60 chronicles alike.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PARAPHRASES = """
Employees who fall ill telephone the office before nine. | What do I do when I have the flu and cannot come to work?
The canteen serves lunch from half past eleven to two. | When can I get something to eat at noon?
Bicycles may be left in the racks behind the building. | Where should I park my bike?
Passwords are changed twice a year and never shared. | How often must I renew my login credentials?
The boiler heats water to sixty degrees against bacteria. | What keeps germs out of the hot tap?
Cats sleep for about fifteen hours of each day. | How long do felines doze?
The bridge was closed because ice had cracked a pillar. | Why could cars not cross the river?
Bread rises as yeast turns sugar into gas. | What makes dough grow in the oven?
The museum admits children without charge on Sundays. | Do kids have to pay for the exhibition at the weekend?
Salt lowers the temperature at which water freezes. | Why is something white strewn on icy streets?
The surgeon washed her hands for three minutes. | How does a doctor prepare before an operation?
The train to the coast leaves from platform four. | Where do I board for the seaside?
Vaccines teach the immune system what an invader looks like. | How do injections protect from diseases?
The moon's pull makes the sea rise twice a day. | What causes the tides?
Invoices are paid within thirty days of their arrival. | How fast do suppliers get their money?
The night watchman makes his round every two hours. | How often does a guard patrol after dark?
Old batteries go into the red box in the hall. | Where can I dispose of empty cells?
The novel tells of a captain who hunts a white whale. | Which book is about a sailor chasing a sea animal?
Penguins huddle together to survive the polar winter. | How do birds of Antarctica stay warm?
A firewall refuses connections that nobody asked for. | What blocks unwanted network traffic?
The orchestra rehearses in the old gymnasium on Mondays. | Where do the musicians practise?
Bees dance to show their sisters where flowers are. | How do insects tell each other about food?
Travel costs are refunded when receipts are handed in. | How do I get my taxi fare back?
The glacier has lost half of its mass since 1950. | How much did the ice in the mountains shrink?
Honey does not spoil, since it holds hardly any water. | Which sweet food keeps for ever?
The lawyer advised them to settle out of court. | What did the attorney recommend?
Smoke detectors are tested in the first week of March. | When are the fire alarms checked?
The gardener prunes the roses when the frost is over. | When are the flowers cut back?
A vegetarian menu must be ordered the day before. | How do I get a meal without meat?
The new engine burns a third less fuel. | Is the motor more economical?
Astronauts lose bone because nothing weighs on them. | What happens to skeletons in space?
The dentist recommends brushing for two minutes. | How long should teeth be cleaned?
Whoever finds a wallet gives it to the reception desk. | Where do I hand in lost property?
The volcano threw ash ten kilometres into the sky. | How high did the eruption reach?
The printer on the second floor can do both sides. | Which machine makes duplex copies?
Parental leave may be shared between mother and father. | Can both parents stay at home with a baby?
The lighthouse has worked without a keeper since 1984. | Since when is the beacon for ships automatic?
Coffee keeps people awake because caffeine blocks adenosine. | Why does an espresso help against tiredness?
The lift stops for maintenance on the last Friday. | When is the elevator out of order?
Chess was played in India fifteen centuries ago. | How old is the game with kings and pawns?
The river flooded the cellar after days of rain. | Why was the basement full of water?
Visitors sign the book at the gate and wear a badge. | How do guests register?
The telescope sees galaxies that formed early in time. | Which instrument looks at distant stars?
The choir sang without instruments. | Was the vocal music accompanied?
Spiders spin silk that is stronger than steel. | Which animal makes a very tough thread?
The contract ends unless it is renewed in writing. | How can I extend the agreement?
Solar panels on the roof feed the grid at noon. | Where does the building make its electricity?
The teacher grades essays within a week. | When do pupils get their homework back?
The pilot turned round because a window had a crack. | Why did the aeroplane return?
Dogs smell illness before machines can measure it. | Which pets can detect diseases?
""".strip().split("\n")
COLOURS = ("red", "blue", "green", "grey", "black", "white", "yellow", "brown")
PARTS = ("valve", "hinge", "gasket", "bearing", "filter", "relay", "sensor", "bracket", "coupling", "switch")
PLACES = ("Ashford", "Brenwick", "Calder", "Dunmore", "Elsworth", "Farleigh", "Granton", "Hollin", "Ilmer", "Kelby",
          "Larkhill", "Marden", "Norwell", "Oakham", "Penrith")
# (as it stands in a chronicle, as it is asked for)
DEEDS = (("repairing the bells", "repaired a bell"), ("painting the doors", "painted a door"),
         ("translating the letters", "translated a letter"), ("planting the orchards", "planted an orchard"),
         ("surveying the boundaries", "surveyed a boundary"), ("digging the canals", "dug a canal"),
         ("copying the manuscripts", "copied a manuscript"), ("rebuilding the chimneys", "rebuilt a chimney"),
         ("collecting the taxes", "collected a tax"), ("teaching the apprentices", "taught an apprentice"),
         ("burying the treasures", "buried a treasure"), ("defending the towers", "defended a tower"))
NAMES = ("Aldous", "Berta", "Cosmo", "Dorothea", "Egbert", "Frida", "Gideon", "Hilda", "Ivo", "Judith", "Konrad")


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    title: str          # of the document that answers it


def make() -> tuple[dict[str, str], list[Question]]:
    """(the documents' texts by title, the questions)."""
    chance = random.Random(5)
    documents: dict[str, str] = {}
    questions: list[Question] = []
    for number, line in enumerate(PARAPHRASES):
        text, asked = line.split(" | ")
        documents[f"Note {number}"] = text
        questions.append(Question("paraphrases", asked, f"Note {number}"))
    codes = set[str]()
    while len(codes) < 200:
        codes.add(f"{chance.choice('BDFGKMQXZ')}{chance.choice('ACEHLRTV')}-{chance.randrange(1000, 9999)}")
    for number, code in enumerate(sorted(codes)):
        colour, part, place = chance.choice(COLOURS), chance.choice(PARTS), chance.choice(PLACES)
        documents[f"Part {number}"] = (f"{code} is a {colour} {part}. It is kept in the store of {place}, on shelf "
                                       f"{chance.randrange(1, 90)}, and comes in boxes of {chance.randrange(2, 60)}.")
        if number % 4 == 0:
            asked = chance.choice(("On which shelf is {}?", "Where is {} kept?", "What is {}?", "boxes of {}"))
            questions.append(Question("codes", asked.format(code), f"Part {number}"))
    pairs = [(deed, place) for deed in DEEDS for place in PLACES]
    for number, ((doing, did), place) in enumerate(chance.sample(pairs, 60)):
        year, name, summers = chance.randrange(1200, 1700), chance.choice(NAMES), chance.randrange(2, 9)
        documents[f"Chronicle {number}"] = (f"In the year {year} {name} was seen {doing} at {place}, which took "
                                            f"{summers} summers.")
        if number < 50:
            questions.append(Question("forms", f"Who {did} in {place}?", f"Chronicle {number}"))
    return documents, questions
