"""Everyday wordings of questions: tables of the words that readers use, in five languages.

`inference.everyday` matches a question with them; `phrasings` has the wordings that models are trained on.
"""


def _split(wordings: str) -> tuple[str, ...]:
    """Return the wordings in a text with commas between them."""
    return tuple(wordings.split(", "))


def _wordings(table: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Return a table with its wordings split."""
    return {key: _split(wordings) for key, wordings in table.items()}


# Wordings of findings in the everyday words of English, German, French, Spanish and Italian readers, by the short name
# of a finding or of GROUPS. Question words and articles (QUESTION_WORDS) are left out.
EVERYDAY = _wordings(
    {
        "normal": (
            "normal, healthy, everything ok, all right, unauffällig, normales EKG, alles normal, gesund, "
            "Normalbefund, ECG normal, normale, tout normal, todo normal, electrocardiograma normal, tutto "
            "normale, elettrocardiogramma normale"
        ),
        "mi": (
            "heart attack, heart infarct, infarct, old infarct, old heart attack, previous infarction, prior MI, "
            "Herzinfarkt, Infarkt, Myokardinfarkt, infarctus, infarctus du myocarde, crise cardiaque, infarto, "
            "infarto de miocardio, infarto agudo de miocardio, ataque al corazón, ataque cardíaco, infarto "
            "miocardico, attacco di cuore"
        ),
        "imi": (
            "inferior heart attack, inferior infarct, Hinterwandinfarkt, inferiorer Infarkt, infarctus "
            "inférieur, infarto inferior, infarto inferiore"
        ),
        "ami": (
            "anterior heart attack, anterior infarct, Vorderwandinfarkt, anteriorer Infarkt, infarctus "
            "antérieur, infarto anterior, infarto anteriore"
        ),
        "sttc": (
            "ST-T change, ST changes, ST segment changes, T wave changes, repolarization abnormality, "
            "repolarisation disturbance, ST-T abnormality, ST-Veränderungen, ST-Streckenveränderungen, "
            "Erregungsrückbildungsstörung, Repolarisationsstörung, trouble de la repolarisation, troubles de la "
            "repolarisation, anomalies ST-T, alteraciones de la repolarización, cambios ST-T, alterazioni della "
            "ripolarizzazione, alterazioni ST-T"
        ),
        "lvh": (
            "left heart enlarged, left ventricle enlarged, thick left ventricle, Linksherzhypertrophie, "
            "linksventrikuläre Hypertrophie, LVH-Zeichen, hypertrophie ventriculaire gauche, HVG, hipertrofia "
            "ventricular izquierda, HVI, ipertrofia ventricolare sinistra, IVS"
        ),
        "lafb": (
            "left anterior fascicular block, linksanteriorer Hemiblock, hémibloc antérieur gauche, HBAG, "
            "hemibloqueo anterior izquierdo, emiblocco anteriore sinistro"
        ),
        "irbbb": (
            "inkompletter Rechtsschenkelblock, bloc de branche droit incomplet, bloqueo incompleto de rama "
            "derecha, blocco di branca destra incompleto"
        ),
        "crbbb": (
            "kompletter Rechtsschenkelblock, bloc de branche droit complet, bloqueo completo de rama derecha, "
            "blocco di branca destra completo"
        ),
        "clbbb": (
            "left bundle block, kompletter Linksschenkelblock, Linksschenkelblock, bloc de branche gauche, bloc "
            "de branche gauche complet, bloqueo de rama izquierda, bloqueo completo de rama izquierda, blocco di "
            "branca sinistra, blocco di branca sinistra completo"
        ),
        "rbbb": (
            "RBBB, right bundle branch block, right bundle block, Rechtsschenkelblock, bloc de branche droit, "
            "bloqueo de rama derecha, blocco di branca destra"
        ),
        "bbb": (
            "BBB, bundle branch block, bundle block, Schenkelblock, bloc de branche, bloqueo de rama, blocco di "
            "branca"
        ),
        "1avb": (
            "first degree block, 1st degree AV block, 1st degree heart block, 1st degree block, AV-Block ersten "
            "Grades, AV-Block 1. Grades, AV-Block I. Grades, bloc AV du premier degré, BAV 1, BAV du premier "
            "degré, bloqueo AV de primer grado, blocco AV di primo grado"
        ),
        "avblock": (
            "heart block, AV block, atrioventricular block, AV-Block, bloc AV, BAV, bloc auriculo-ventriculaire, "
            "bloqueo AV, bloqueo auriculoventricular, blocco AV, blocco atrioventricolare"
        ),
        "pvc": (
            "PVC, VES, VPB, VPC, ventricular ectopics, ventricular ectopy, ventricular ectopic beats, "
            "ventricular extra beats, ventrikuläre Extrasystolen, extrasystoles ventriculaires, ESV, "
            "extrasístoles ventriculares, extrasistoli ventricolari, BEV"
        ),
        "beats": (
            "extra beat, ectopic beats, ectopics, skipped beats, premature complexes, Extrasystolen, "
            "Extraschläge, extrasystoles, extrasístoles, extrasistoli"
        ),
        "afib": (
            "afib, a fib, AF, auricular fibrillation, VHF, Vorhofflimmern, fibrillation atriale, fibrillation "
            "auriculaire, FA, fibrilación auricular, fibrillazione atriale"
        ),
        "aflt": (
            "flutter, aflutter, AFL, Vorhofflattern, flutter auriculaire, flutter atrial, aleteo auricular, "
            "flutter atriale"
        ),
        "sr": "sinus, Sinusrhythmus, rythme sinusal, ritmo sinusal, ritmo sinusale",
        "sarrh": "Sinusarrhythmie, arythmie sinusale, arritmia sinusal, aritmia sinusale",
        "stach": "Sinustachykardie, tachycardie sinusale, taquicardia sinusal, tachicardia sinusale",
        "sbrad": "Sinusbradykardie, bradycardie sinusale, bradicardia sinusal, bradicardia sinusale",
        "pace": (
            "pacemaker, paced, pacing, paced rhythm, pacemaker spikes, Schrittmacher, Herzschrittmacher, "
            "Schrittmacherrhythmus, stimulateur cardiaque, marcapasos, ritmo de marcapasos, segnapassi, ritmo da "
            "pacemaker"
        ),
        "lae": (
            "enlarged left atrium, left atrial hypertrophy, P mitrale, linksatriale Vergrößerung, vergrößerter "
            "linker Vorhof, dilatation de l'oreillette gauche, hypertrophie auriculaire gauche, crecimiento "
            "auricular izquierdo, dilatación auricular izquierda, ingrandimento atriale sinistro"
        ),
        "ivcd": (
            "IVCD, conduction delay, intraventricular block, intraventrikuläre Leitungsstörung, trouble de "
            "conduction intraventriculaire, trastorno de conducción intraventricular, disturbo di conduzione "
            "intraventricolare"
        ),
        "cd": (
            "conduction problem, conduction abnormality, Leitungsstörung, trouble de conduction, trastorno de "
            "conducción, disturbo di conduzione"
        ),
        "hyp": "hypertrophy, Hypertrophie, hypertrophie, hipertrofia, ipertrofia",
        "ste": (
            "ST elevation, ST elevations, ST segment elevation, ST-Hebung, ST-Hebungen, ST-Streckenhebung, "
            "sus-décalage ST, sus-décalage du segment ST, elevación del ST, elevación del segmento ST, "
            "sopraslivellamento ST, sopraslivellamento del tratto ST"
        ),
        "std": (
            "ST depression, ST depressions, ST segment depression, ST-Senkung, ST-Senkungen, sous-décalage ST, "
            "descenso del ST, sottoslivellamento ST"
        ),
        "invt": (
            "T wave inversion, T inversion, inverted T wave, negative T waves, T-Negativierung, T-Inversion, "
            "negative T-Wellen, ondes T négatives, inversion de l'onde T, inversión de la onda T, ondas T "
            "negativas, inversione dell'onda T, onde T negative"
        ),
        "qwave": "pathological Q waves, Q-Zacken, ondes Q, ondas Q, onde Q",
        "isc": (
            "ischemia, ischaemia, ischemic changes, ischaemic changes, myocardial ischemia, Ischämie, ischémie, "
            "isquemia, ischemia miocardica"
        ),
        "stemi": "STEMI, acute MI, acute infarction, acute heart attack, akuter Infarkt, SCACEST, IAMCEST",
        "lngqt": "QT prolongation, prolonged QT syndrome, long QT syndrome, LQTS, langes QT-Syndrom",
        "wpw": "delta wave, preexcitation, pre-excitation, Deltawelle, preeccitazione, preexcitación",
    }
)
# findings that only questions combine: the members
GROUPS = {"avblock": ("1avb", "2avb", "3avb", "lpr"), "rbbb": ("irbbb", "crbbb")}
# wordings of other questions, by the question in the words of QUERY or of the measured questions
EVERYDAY_QUESTIONS = _wordings(
    {
        "What is the rhythm?": (
            "rhythm, heart rhythm, underlying rhythm, Rhythmus, Herzrhythmus, rythme, rythme cardiaque, ritmo, "
            "ritmo cardíaco, ritmo cardiaco, arrhythmia, arrhythmias, rhythm disturbance, Rhythmusstörung, "
            "arythmie, arritmia, aritmia"
        ),
        "What are the findings?": (
            "findings, abnormalities, abnormal, anything abnormal, anything wrong, wrong, abnormal findings, "
            "diagnosis, diagnoses, what is wrong, problems, Befunde, Befund, Diagnose, anomalies, résultats, "
            "diagnostic, hallazgos, diagnóstico, anomalías, reperti, diagnosi, anomalie"
        ),
        "What is the heart rate?": (
            "Herzfrequenz, Puls, fréquence cardiaque, pouls, frecuencia cardíaca, pulso, frequenza cardiaca, "
            "polso, wie schnell schlägt Herz"
        ),
        "How long is the PR interval?": (
            "PR-Intervall, PQ-Zeit, PQ-Intervall, intervalle PR, espace PR, intervalo PR, intervallo PR"
        ),
        "How long is the QRS complex?": (
            "QRS-Dauer, QRS-Breite, QRS-Komplex, durée du QRS, largeur du QRS, duración del QRS, durata del QRS"
        ),
        "Is the QRS wide?": (
            "QRS verbreitert, QRS breit, QRS large, QRS élargi, QRS ancho, QRS largo, wide complexes, broad "
            "complexes, wide complex"
        ),
        "What is the QT interval?": (
            "QT-Zeit, QT-Intervall, intervalle QT, espace QT, intervalo QT, intervallo QT"
        ),
        "What is the QTc?": (
            "QTc-Zeit, QTc-Intervall, QT corrigé, QTc corrigé, QT corregido, QTc corregido, QT corretto, QTc "
            "corretto"
        ),
        "Is the QT long?": (
            "QT verlängert, QT long, QT allongé, QT largo, QT prolongado, QT lungo, QT prolungato"
        ),
        "What is the heart axis?": (
            "Herzachse, elektrische Herzachse, Lagetyp, axe, axe du coeur, axe électrique, eje, eje eléctrico, "
            "eje cardíaco, asse, asse elettrico, asse cardiaco"
        ),
        "Is there left axis deviation?": (
            "left deviation, Linkstyp, überdrehter Linkstyp, Linkslage, déviation axiale gauche, axe gauche, "
            "desviación izquierda del eje, eje izquierdo, deviazione assiale sinistra"
        ),
        "Is there right axis deviation?": (
            "right deviation, Rechtstyp, Rechtslage, déviation axiale droite, axe droit, desviación derecha del "
            "eje, eje derecho, deviazione assiale destra"
        ),
        "Is the rhythm regular?": (
            "regelmäßig, Rhythmus regelmäßig, rhythmisch, régulier, rythme régulier, regular, ritmo regular, "
            "regolare, ritmo regolare"
        ),
        "Is the rhythm irregular?": (
            "unregelmäßig, irrégulier, rythme irrégulier, irregolare, ritmo irregolare"
        ),
        "In which leads is there ST elevation?": "where ST elevation, leads with ST elevation",
    }
)
# wordings that get a report, the safety sentence, or a sentence about the last answer
DESCRIBE = _split(
    "describe, report, summarize, summarise, summary, interpret, interpretation, read, explain, analyze, "
    "analyse, overview, what do you see, what can you see, what do you think, full report, short report, "
    "beschreibe, beschreiben, Beschreibung, interpretiere, interpretieren, was siehst du, was sehen "
    "Sie, Zusammenfassung, décris, décrivez, description, interprète, interprétez, résumé, que vois-tu, que "
    "voyez-vous, descripción, interpreta, interpretación, resumen, qué ves, descrivi, descrizione, "
    "interpretazione, riassunto, cosa vedi"
)
SAFETY = _split(
    "dangerous, danger, serious, severe, bad, life threatening, emergency, urgent, critical, worried, worry, "
    "should I be worried, worrying, should I worry, safe, die, dying, treat, treatment, therapy, "
    "what should I do, doctor, need doctor, see doctor, need hospital, go hospital, call ambulance, "
    "call doctor, need "
    "treatment, need pacemaker, need surgery, exercise, drive, fly, prognosis, gefährlich, schlimm, ernst, "
    "Notfall, bedrohlich, lebensbedrohlich, Behandlung, Therapie, was soll ich tun, Arzt, zum Arzt, "
    "dangereux, grave, urgence, traitement, que faire, médecin, peligroso, urgente, emergencia, tratamiento, "
    "qué hacer, médico, pericoloso, emergenza, trattamento, cosa fare, medico"
)
SURE = _split(
    "sure, how sure, certain, how certain, confident, how confident, confidence, certainty, probability, "
    "probable, likely, reliable, wie sicher, sicher, sûr, seguro, sicuro"
)
WHY = _split(
    "why, why think so, why say so, why so, reason, reasons, how know, what makes think so, based on what, "
    "explain why, explain answer, explain yourself, warum, weshalb, woran, pourquoi, por qué, perché"
)
# words that do not tell what a question is about
QUESTION_WORDS = frozenset(
    (
        "a an the is are was were be been being am do does did done has have had having can could "
        "i me my we you your it its he she his her him they them this that these those there "
        "here any some sign signs evidence of in on at for to from with by about or and please tell show "
        "shows shown see seen find look looks looking like give say what which who patient patients "
        "person ecg ekg electrocardiogram recording tracing trace ever present so just really possible "
        "possibly suspicious suspected suspicion visible think know if hello hi also ist sind war das der die "
        "den dem des ein eine einen einem einer es gibt hat haben liegt vor zeigt zeigen dieses dieser diese "
        "sieht siehst man mir bitte im bei bist wie welche welcher welches zu sehen da kann besteht und oder du "
        "sie est sont ce que qu il elle y le la les l un une de d cet cette ces montre voit quel quelle quels "
        "quelles avoir sagit dans au aux tracé son esto este esta estos hay el los las lo del se ve muestra "
        "tiene cual cuales existe paciente una unos e c sono uno gli di della dello nel nella questo questa "
        "mostra si ha qual quale quali paziente"
    ).split()
)
# findings to suggest, by the words of questions that no wording fits
RELATED = {
    "ste mi ami imi isc std sttc": (
        "st stemi nstemi elevation elevations depression depressions hebung senkung infarction infarct "
        "heart attack coronary acs angina occlusion troponin ischemia ischaemia ischemic ischaemic"
    ),
    "invt tab ndt sttc": "t inversion inverted negative flat peaked repolarization repolarisation u",
    "el sttc tab": (
        "hyperkalemia hyperkalaemia hypokalemia hypokalaemia potassium calcium electrolyte electrolytes"
    ),
    "dig sttc": "digitalis digoxin",
    "ste sttc": "pericarditis j",
    "qwave mi imi ami": "q qs necrosis scar",
    "bbb crbbb clbbb irbbb ivcd lafb wpw": (
        "bundle branch block blocks conduction qrs wide broad fascicular hemiblock delta wpw preexcitation"
    ),
    "1avb 2avb 3avb lpr": "av pr degree block wenckebach mobitz",
    "afib aflt svtac stach sbrad": (
        "rhythm arrhythmia arrhythmias fibrillation flutter tachycardia bradycardia svt vt vf atrial "
        "ventricular palpitations fast slow asystole cardioversion"
    ),
    "pvc pac bigu trigu": (
        "beat beats ectopic ectopics extrasystole extrasystoles premature bigeminy trigeminy extra "
        "couplet couplets"
    ),
    "pace": "pacemaker paced pacing icd crt spikes",
    "lvh lae rvh": (
        "hypertrophy enlargement enlarged dilated dilatation ventricle ventricular atrium atrial p "
        "voltage strain hypertension thick heart size cardiomyopathy hocm rvh"
    ),
    "normal": "healthy fine ok wrong abnormal",
}
