"""A second set like `retrieval.py`'s, as large, with other topics and wordings: no number was tuned on it.

If hybrid search is behind one of its halves here, the search is to be mended by reasons, and never by these questions.
That was so once, in two of three kinds: 145 were found in the first 5, and 131 first. Now a chunk counts as much as it
is near, and codes count by themselves.
"""

from __future__ import annotations

import random

from tests.bench.retrieval import Question

PARAPHRASES = """
Tenants give notice three months before they move out. | How early do I have to tell my landlord that I am leaving?
The soup is thickened with mashed potatoes instead of cream. | What makes the broth creamy without dairy?
Merging needs two approvals from colleagues of the team. | How many people have to review my code?
The desert receives less rain in a year than London in a week. | Where does it hardly ever pour?
The striker tore a ligament and misses the rest of the season. | Why is the footballer out injured?
Dividends are paid to shareholders every May. | When do owners of stock receive money?
Migraines often begin with flickering lights before the eyes. | What warns of a severe headache?
The ferry does not sail when waves exceed four metres. | In what weather is the boat cancelled?
Refunds reach the customer's card within ten working days. | How long until I get my cash back?
The violin was carved from a spruce that fell in a storm. | What is the instrument made of?
Wolves raise their cubs together, uncles and aunts included. | Do predators help relatives bring up their young?
Backups are written every night to tapes in another town. | Where are copies of our files stored?
Concrete reaches its strength after four weeks. | When is cement fully hard?
The senate rejected the bill by a single vote. | How close was the decision about the new law?
Ripe avocados yield a little when they are pressed. | How can I tell that the fruit is ready to eat?
Her passport expired while she was abroad. | Whose travel document was no longer valid?
The tunnel cut the journey over the mountains to an hour. | What made the trip across the Alps shorter?
Whales were hunted for the oil in their heads. | Why did people kill giant sea mammals?
The lecture was moved to the large hall, since too many came. | Why did the professor change rooms?
Aspirin thins the blood and is stopped before surgery. | Which painkiller must not be taken ahead of an operation?
The castle's well was dug eighty metres into the rock. | How did the fortress get its water?
Orders above fifty euros are shipped free of charge. | From what amount on is delivery included?
Earthworms loosen the soil and let air into it. | Which animals help the garden's ground?
The jury could not agree, so the trial begins again. | Why is there a second court case?
Snow reflects so much sunlight that skiers need goggles. | Why must eyes be shielded on white slopes?
The bakery sells yesterday's loaves at half price. | Where is old bread cheaper?
Children under six must sit in a booster seat. | What do toddlers need in a car?
The comet returns every seventy-six years. | How often can the tailed star be seen?
The database locks a row while somebody edits it. | What prevents two users from changing a record at once?
Olive trees can bear fruit for a thousand years. | Which plant gives harvests for many centuries?
The goalkeeper wears another colour than the team. | Which player's shirt is different?
Tea grew popular when coffee was taxed. | Why did people switch to another hot drink?
The apprentice polished lenses for the first microscopes. | Who ground glass for early scientific devices?
Minutes of the meeting are sent round by Thursday. | When is the protocol of the discussion distributed?
Rust forms where steel meets water and oxygen. | What causes brown spots on iron?
The choirmaster rented bells from the neighbouring parish. | Who borrowed chimes?
Penicillin was found because a dish was left uncovered. | Which medicine was discovered through carelessness?
The island abolished cars and kept its donkeys. | Where is there no traffic but beasts of burden?
Mosquitoes breed in puddles that stand for a week. | How do I keep biting insects from multiplying?
A deposit of two rents is returned with interest. | What happens to the security that I left with the landlord?
The cyclist drank too little and fainted at the finish. | Who collapsed from dehydration?
The library lends tools besides books. | Where could I borrow a drill?
The parliament meets in a former gasworks. | Which old industrial building houses the deputies?
Silk was a secret that cost smugglers their heads. | Which fabric's making was guarded under pain of death?
The kettle switches itself off when the water boils. | Does the device for hot water stop on its own?
The orchard is fenced because deer nibble the bark. | What protects the fruit trees from wild animals?
Left-handed scissors have their blades the other way round. | What is special about shears for southpaws?
The mayor donates her salary to the fire brigade. | Who gives their pay to those who put out blazes?
Actors warm up their voices by humming. | How do performers prepare to speak on stage?
The satellite burned up above the Pacific. | What became of the spacecraft over the ocean?
""".strip().split("\n")
TOWNS = ("Aarhus", "Bergen", "Cork", "Dresden", "Evora", "Faro", "Genoa", "Haifa", "Izmir", "Jerez", "Krakow", "Lyon",
         "Malmo", "Nantes", "Odessa", "Porto", "Riga", "Split", "Turin", "Vilnius")
# (as it stands in a letter, as it is asked for)
WISHES = (("would lend out their ladders", "Who lends a ladder"), ("had been breeding ponies", "Who breeds a pony"),
          ("were looking for lost dictionaries", "Who has lost a dictionary"),
          ("offered used sewing machines", "Who offers a machine for sewing"),
          ("wished to exchange stamps", "Who wants a stamp exchanged"),
          ("intended to found swimming clubs", "Who intends the founding of a swimming club"),
          ("gave lessons to drummers", "Who is giving a drummer a lesson"),
          ("complained of barking puppies", "Who complains about a puppy that barks"),
          ("searched for reliable carpenters", "Who searches a reliable carpenter"),
          ("invited neighbours to play cards", "Who is inviting a neighbour for playing cards"),
          ("warned of slippery stairs", "Who gives a warning of a slippery stair"),
          ("thanked the kind nurses", "Who is thanking a nurse for kindness"))
FAMILIES = ("Abbott", "Boateng", "Castellan", "Demir", "Eklund", "Fontaine", "Grishin", "Haddad", "Ishikawa", "Jansen",
            "Kowalski", "Lindqvist", "Moretti")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def make() -> tuple[dict[str, str], list[Question]]:
    """(the documents' texts by title, the questions)."""
    chance = random.Random(20)
    documents: dict[str, str] = {}
    questions: list[Question] = []
    for number, line in enumerate(PARAPHRASES):
        text, asked = line.split(" | ")
        documents[f"Item {number}"] = text
        questions.append(Question("paraphrases", asked, f"Item {number}"))
    _flights(chance, documents, questions)
    pairs = [(wish, town) for wish in WISHES for town in TOWNS]
    for number, ((doing, asked), town) in enumerate(chance.sample(pairs, 60)):
        documents[f"Letter {number}"] = (f"Printed on {chance.choice(DAYS)}, page {chance.randrange(2, 40)}: the "
                                         f"{chance.choice(FAMILIES)} family from {town} wrote that they {doing}.")
        if number < 50:
            questions.append(Question("forms", f"{asked} in {town}?", f"Letter {number}"))
    return documents, questions


def _flights(chance: random.Random, documents: dict[str, str], questions: list[Question]) -> None:
    """200 flights that differ in little but their numbers; every fourth is asked about."""
    numbers = set[str]()
    while len(numbers) < 200:
        numbers.add(f"{chance.choice('CEJLPRSTUVW')}{chance.choice('GHKNXYZ')}{chance.randrange(100, 9999)}")
    for number, flight in enumerate(sorted(numbers)):
        start, end = chance.sample(TOWNS, 2)
        time = f"{chance.randrange(5, 23):02}:{chance.randrange(0, 60, 5):02}"
        gate, day = f"{chance.choice('ABCD')}{chance.randrange(1, 60)}", chance.choice(DAYS)
        documents[f"Flight {number}"] = (f"The {time} connection from {start} to {end}, operated as {flight}, boards "
                                         f"at gate {gate} and flies on {day}s.")
        if number % 4 == 0:
            asked = chance.choice(("When does {} leave?", "Which gate do passengers of {} go to?", "{} destination",
                                   "On what day of the week does {} operate?"))
            questions.append(Question("codes", asked.format(flight), f"Flight {number}"))
