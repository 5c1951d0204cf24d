"""Several phrasings for each question, so that a model learns the question and not its wording."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CANNOT = "This cannot be told from an ECG."

# {is_there}: "Is there" or "Are there"
VERIFY = [
    "{is_there} {what}?",
    "{is_there} {what} in this ECG?",
    "{is_there} any {what}?",
    "Does this ECG show {what}?",
    "Does the recording show {what}?",
    "Can you see {what} in this ECG?",
    "Do you see {what}?",
    "Would you say that this ECG shows {what}?",
]
VERIFY_OWN = {
    "normal": [
        "Is this ECG normal?",
        "Is this a normal ECG?",
        "Is the ECG normal?",
        "Does this ECG look normal?",
        "Would you call this ECG normal?",
        "Is everything normal in this ECG?",
    ],
    "pace": [
        "Does the patient have a pacemaker?",
        "Is there a pacemaker?",
        "Is there a pacemaker rhythm?",
        "Is the rhythm paced?",
        "Does this ECG show pacing?",
        "Is this a paced ECG?",
    ],
    "nax": ["Is the heart axis normal?", "Is the axis normal?", "Does this ECG show a normal heart axis?"],
}
# synonyms of findings that only questions use
ALSO = {
    "mi": ["infarction", "MI", "a heart attack"],
    "imi": ["an inferior infarction", "inferior MI"],
    "ami": ["an anterior infarction", "anterior MI"],
    "sttc": ["changes of ST segment or T wave"],
    "lvh": ["LVH", "hypertrophy of the left ventricle"],
    "lafb": ["left anterior hemiblock", "LAFB"],
    "irbbb": ["incomplete RBBB"],
    "crbbb": ["complete RBBB"],
    "clbbb": ["LBBB", "left bundle branch block"],
    "1avb": ["first-degree AV block", "a first degree heart block"],
    "pvc": ["PVCs", "ventricular extrasystoles", "premature ventricular beats"],
    "afib": ["AF", "a-fib"],
    "stach": ["sinus tach"],
    "sbrad": ["sinus brady"],
    "lae": ["enlargement of the left atrium"],
    "ivcd": ["intraventricular conduction delay"],
    "pac": ["PACs", "supraventricular extrasystoles", "premature atrial beats"],
    "beats": ["extra beats", "extrasystoles"],
    "sr": ["a sinus rhythm"],
}
CHOOSE = [
    "Which of these does the ECG show: {a} or {b}?",
    "Does this ECG show {a}, {b}, both or none?",
    "What is seen in this ECG: {a} or {b}?",
    "{a} or {b}?",
    "Which is present, {a} or {b}?",
]
QUERY = {
    "rhythm": [
        "What is the rhythm?",
        "What is the heart rhythm?",
        "Which rhythm does this ECG show?",
        "What rhythm is this?",
        "Name the rhythm.",
    ],
    "findings": [
        "What are the findings?",
        "What does this ECG show?",
        "List the findings.",
        "What can be seen in this ECG?",
        "What is the diagnosis?",
    ],
    "form": [
        "What is striking about the form of the waves?",
        "Which changes of form does this ECG show?",
        "Is anything unusual about the waves, and what?",
        "What form-related statements can be made?",
    ],
    "class": [
        "Which kinds of heart disease does this ECG show?",
        "Which diagnostic classes does this ECG belong to?",
        "Name the classes of diagnosis.",
        "What group of diagnoses does this ECG fall into?",
    ],
    "axis": [
        "What is the heart axis?",
        "What is the electrical axis of the heart?",
        "How does the axis lie?",
        "In which direction does the heart axis point?",
    ],
    "noise": [
        "What kinds of noise are in this recording?",
        "Is the recording disturbed, and by what?",
        "What disturbs this ECG?",
        "Which artefacts does this ECG have?",
    ],
    "leads": [
        "Which leads show {what}?",
        "In which leads is there {what}?",
        "Where is {what} seen?",
        "Name the leads with {what}.",
    ],
    "beats": [
        "What kinds of premature beats are there?",
        "Which extra beats does this ECG show?",
        "What extrasystoles do you see?",
        "Name the kinds of extra beats.",
    ],
    "stage": [
        "At what stage is the infarction?",
        "How old is the infarction?",
        "Is the infarction early, middle or old?",
        "What is the stage of the myocardial infarction?",
    ],
    "age": [
        "How old is the patient?",
        "What is the patient's age?",
        "What age would you guess from this ECG?",
    ],
    "sex": [
        "Is the patient male or female?",
        "What is the patient's sex?",
        "Is this the ECG of a man or a woman?",
    ],
    "rate": ["What is the heart rate?", "How fast does the heart beat?", "How high is the ventricular rate?"],
    "pr": ["How long is the PR interval?", "What is the PR interval?", "What does the PR interval measure?"],
    "qrs": [
        "How long is the QRS complex?",
        "What is the QRS duration?",
        "How wide are the QRS complexes?",
    ],
    "describe": [
        "Describe this ECG.",
        "Write a report of this ECG.",
        "Summarize this ECG.",
        "Interpret this ECG.",
        "What would a report of this ECG say?",
    ],
}
# Questions that no ECG answers. An ECG may show digitalis, electrolytes, a pacemaker, age and sex.
UNANSWERABLE = {
    "name": ["What is the patient's name?", "What is the patient called?", "Who is the patient?"],
    "birthday": ["When was the patient born?", "What is the patient's date of birth?"],
    "address": ["Where does the patient live?", "What is the patient's address?"],
    "occupation": [
        "What is the patient's occupation?",
        "What does the patient do for a living?",
        "Where does the patient work?",
    ],
    "pet": [
        "How old is the patient's dog?",
        "What is the name of the patient's dog?",
        "Does the patient have a dog?",
        "Does the patient keep a cat?",
    ],
    "weather": ["What is the weather like?", "What was the weather on that day?", "Is it raining?"],
    "medication": [
        "What medication does the patient take?",
        "Which drugs is the patient on?",
        "Does the patient take aspirin?",
        "What dose was prescribed?",
    ],
    "pain": ["Is the patient in pain?", "Does the patient have chest pain?", "How bad is the pain?"],
    "symptoms": [
        "What are the patient's symptoms?",
        "Does the patient feel dizzy?",
        "Is the patient short of breath?",
        "Does the patient feel tired?",
    ],
    "blood pressure": [
        "What is the blood pressure?",
        "How high is the patient's blood pressure?",
        "What is the systolic pressure?",
    ],
    "temperature": ["Does the patient have a fever?", "What is the patient's body temperature?"],
    "height": ["How tall is the patient?", "What is the patient's height?"],
    "weight": [
        "How much does the patient weigh?",
        "What is the patient's weight?",
        "What is the patient's BMI?",
    ],
    "smoking": [
        "Does the patient smoke?",
        "Is the patient a smoker?",
        "How many cigarettes a day are smoked?",
    ],
    "alcohol": ["Does the patient drink alcohol?", "How much alcohol does the patient drink?"],
    "diet": ["What did the patient eat for breakfast?", "Is the patient a vegetarian?"],
    "family": ["Is the patient married?", "How many children does the patient have?"],
    "family history": ["Is there heart disease in the family?", "What did the patient's father die of?"],
    "blood group": ["What is the patient's blood group?", "Which blood type does the patient have?"],
    "laboratory": ["What is the cholesterol level?", "What is the blood sugar?", "What is the hemoglobin?"],
    "allergies": ["Does the patient have allergies?", "Is the patient allergic to penicillin?"],
    "hospital": ["In which hospital was this recorded?", "Which doctor saw the patient?"],
    "date": ["When was this ECG recorded?", "What day is it?", "What time of day was it?"],
    "language": ["What language does the patient speak?", "Where does the patient come from?"],
    "insurance": ["What insurance does the patient have?", "What did the examination cost?"],
    "mood": ["Is the patient happy?", "What is the patient thinking of?", "Is the patient afraid?"],
    "hair": ["What color is the patient's hair?", "What color are the patient's eyes?"],
    "sport": ["Which sport does the patient do?", "How many steps does the patient walk a day?"],
    "surgery": ["Which operations has the patient had?", "When was the last operation?"],
    "bones": ["Is a bone broken?", "Does the patient's knee hurt?"],
    "sleep": ["How did the patient sleep?", "How many hours does the patient sleep?"],
    "world": ["What is the capital of France?", "Who won the match?", "Tell me a joke."],
}


def all_texts(words: Sequence[str]) -> list[str]:
    """Return all texts of questions and answers, including questions about the words of findings."""
    tables = (VERIFY_OWN, ALSO, QUERY, UNANSWERABLE)
    fixed = [text for table in tables for texts in table.values() for text in texts]
    verify = [form.format(is_there=there_question(what), what=what) for what in words for form in VERIFY]
    return [CANNOT, *VERIFY, *CHOOSE, *fixed, *verify, *(as_sentence(what) for what in words), *words]


def _choose_text(rng: "np.random.Generator", texts: Sequence[str]) -> str:
    """Return a random text."""
    return texts[int(rng.integers(len(texts)))]


def there_question(what: str) -> str:
    """Return "Are there" for a plural, else "Is there"."""
    head = re.split(r" (?:in|as|of|for) ", what)[0]
    plural = head.endswith("s") and not head.endswith(("ss", "is", "us"))
    return "Are there" if plural and not head.startswith(("a ", "an ")) else "Is there"


def verify_question(rng: "np.random.Generator", name: str, words: str) -> str:
    """Ask whether a finding is present, by its short name and its words."""
    if name in VERIFY_OWN:
        return _choose_text(rng, VERIFY_OWN[name])
    also = ALSO.get(name)
    # half of the questions use the words of the answers
    what = _choose_text(rng, also) if also and rng.random() < 0.5 else words
    # "any a heart attack" is not English
    forms = [form for form in VERIFY if "any" not in form or not what.startswith(("a ", "an "))]
    return _choose_text(rng, forms).format(is_there=there_question(what), what=what)


def choose_question(rng: "np.random.Generator", a: str, b: str) -> str:
    """Ask which of two findings is present."""
    text = _choose_text(rng, CHOOSE).format(a=a, b=b)
    return text[0].upper() + text[1:]


def open_question(rng: "np.random.Generator", topic: str, what: str = "") -> str:
    """Ask about a topic."""
    return _choose_text(rng, QUERY[topic]).format(what=what)


def unanswerable_question(rng: "np.random.Generator", topic: str) -> str:
    """Ask a question that no ECG answers."""
    return _choose_text(rng, UNANSWERABLE[topic])


def join_words(words: Sequence[str]) -> str:
    """Join words as in a sentence: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def as_sentence(text: str) -> str:
    """Return a text as a sentence."""
    return f"{text[0].upper()}{text[1:]}."
