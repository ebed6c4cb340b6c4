"""The words by which `turn_features` tells a request from a claim. English, unless a set says otherwise.

Speech in another language needs none of them: what resembles no turn of the training calls is judged (see `pregate`).
"""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


NUMBER_WORDS = words(
    "zero oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"
)
DIGITS = {
    "oh": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
}
# Single letters that are words of their own in some language: not taken for spelling.
ONE_LETTER_WORDS = words("a i y e o à é u")

# First words of a sentence that asks the customer for something, or tells them what to do next.
REQUEST_STARTS = words(
    "please provide tell share confirm reply respond choose pick select check let say type give spell read repeat stay "
    "hold wait restart reboot run open try turn go tap toggle set see make enter use keep call have feel don't do just"
)
# First words of a sentence whose rest is on condition of what the customer says or does.
CONDITION_STARTS = words("once if when as after before unless until depending whenever should or otherwise")
# First words that are skipped to see how a sentence really begins.
LEAD_INS = words("to for this that these those first also and so then next")
POLITE_WORDS = words(
    "thanks thank welcome hello hi hey sure certainly absolutely okay ok great perfect alright goodbye bye "
    "understood sorry apologies apologize appreciate glad happy pleasure good morning afternoon evening"
)
# "I'd be happy to", "I'm here to help", "I hope": nothing is claimed.
OFFERING_VERBS = words("help assist guide happy glad hope wait")
WISHING_VERBS = words("wishing enjoy hoping wish")
# "Let me check", "I'll look into it": announces reading.
LOOKING_VERBS = words(
    "check look see find pull verify review retrieve start begin search get locate take try continue confirm move ask "
    "then proceed transfer"
)
# "This will help me find it": says what a request is for.
PURPOSE_VERBS = words("help tell show allow let give ensure make")
# "If you have any questions, feel free": an offer that ends a turn.
OFFER_WORDS = words("questions hesitate feel else know reach say reply")
# First words of a question; what is before one, in the same sentence, is not part of the question.
QUESTION_STARTS = words(
    "could would can do does did is are was were will what which who whom whose where when why how may might shall "
    "should have has anything okay ok right correct and or so any alright all yes yeah no don't doesn't didn't isn't "
    "aren't wasn't haven't hasn't won't can't"
)
# First words of a clause that claims something.
CLAIM_STARTS = words(
    "i i've i'm i'll we we've we're we'll you you're you'll you've it it's it'll its that's the your he he's she she's "
    "they they're they've there there's everything nothing no nobody our his her their my this these those all yes"
)
# Who or what a short claim is about.
CLAIM_SUBJECTS = words(
    "it it's you you're you've you'll he he's she she's they they're there's that's everything nothing everyone nobody"
)
# Words that a claim may begin with all the same: "So I cancelled it, right?"
CLAIM_LEAD_INS = words("so well and but okay")

# Participles after "I have" that change nothing for the customer.
LOOKUP_VERBS = words(
    "found located pulled looked checked reviewed retrieved verified noted received searched identified seen tried "
    "gathered authenticated got calculated understood heard been read had confirmed noticed listed shown provided "
    "mentioned asked explained shared needed wanted tested analyzed compared examined accessed matched double-checked "
    "discussed explored captured opened said told described outlined helped talked spoken selected chosen considered "
    "need proceed encountered experienced attempted covered assessed reassessed re-checked rechecked included assumed "
    "exhausted adhered hoped listened researched summarized kept missed ran met run apologized recommended followed "
    "reached walked decided worked appreciated loved presented paired prepared requested given"
)
IRREGULAR_PAST = words(
    "sent put made given taken paid done sold cut let begun shut gave took left written set told spoken brought got "
    "had seen found read said heard understood shown chosen gotten bought built held kept lost met run"
)
DONE_STATES = words(
    "canceled cancelled refunded updated processed booked rebooked changed issued credited sent shipped modified "
    "approved waived removed added applied charged completed upgraded submitted scheduled reserved exchanged returned "
    "confirmed paid activated enabled disabled restored resumed suspended unlocked reset deleted closed covered fixed "
    "resolved sorted handled settled filed ordered placed registered renewed extended"
)
ADVERBS = words("already just now also successfully then gone went ahead and been both all fully only even")
PENDING_WORDS = words("if whether once until when ensure verify sure")

PROMISES = words("promise promised guarantee guaranteed guarantees definitely assured assure")
DENIALS = words("no not neither can't cannot unable nor none without")
UNIVERSALS = words(
    "all always never every any unlimited anytime whenever everyone nobody nothing none everything complimentary free "
    "automatically completely entirely whatever forever anything"
)
POLICY_WORDS = words(
    "policy policies guideline guidelines rule rules regulations entitled entitles entitlement entitlements eligible "
    "ineligible eligibility qualify qualifies qualified allow allows allowed permitted permits complimentary waive "
    "waived waives waiver terms"
)
MONEY_WORDS = words(
    "dollar dollars cent cents euro euros pound pounds rupee rupees usd eur gbp inr bucks fee fees charge charged "
    "charges cost costs price priced fare refund refunds refunded refundable credit credits credited voucher vouchers "
    "discount discounts compensation reimburse reimbursed reimbursement waive waived free bill billed pay paid money "
    "cash complimentary penalty"
)
TIME_UNITS = words(
    "second seconds minute minutes min mins hour hours day days week weeks weekend month months year years moment"
)
TIME_WORDS = words(
    "tomorrow tonight shortly soon immediately instantly overnight monday tuesday wednesday thursday friday saturday "
    "sunday noon midnight"
)
# What a statement is about when it states a cost, a benefit or an absolute.
BENEFITS = MONEY_WORDS | UNIVERSALS | POLICY_WORDS | TIME_WORDS
# What comes of doing as the agent says: "Send it without a receipt, nobody checks".
OUTCOMES = words("they'll he'll she'll it'll nobody none nothing anyway")
REFUSALS = words("can't cannot unable unfortunately won't couldn't wouldn't impossible")
PERSONAL_WORDS = words(
    "address email password pin lives birthday birth ssn passport account phone diagnosis salary husband wife daughter "
    "son"
)
REPAIR_WORDS = words("spell spelled spelling letter digit repeat again slowly double-check catch reconfirm")
DEMANDS = words(
    "refund refunded compensation compensate voucher discount waive waived free credit exception money cash supervisor "
    "manager anyway cheaper upgrade reimburse"
)
AGREEMENTS = words("yes sure absolutely certainly definitely course yeah yep okay done")

# Pleasantries in other languages: all that is skipped there, beside short questions.
PLEASANTRIES = words(
    "hola gracias bienvenido bienvenida buenos buenas días tardes noches adiós muchas por favor "
    "bonjour merci bonsoir bienvenue au revoir beaucoup s'il vous plaît je vous en prie "
    "hallo danke guten tag morgen abend willkommen tschüss auf wiedersehen bitte schön vielen dank gerne "
    "olá obrigado obrigada bom dia boa tarde noite bem vindo vinda muito de nada "
    "ciao grazie buongiorno buonasera benvenuto arrivederci prego mille "
    "hoi dank u goedemorgen goedemiddag welkom graag gedaan "
    "un momento um einen moment augenblick instant tchau até logo hasta luego "
    "こんにちは ありがとうございます 你好 您好 谢谢 谢谢您 再见 请稍等 "
    "안녕하세요 감사합니다 مرحبا شكرا привет здравствуйте спасибо"
)

# What the name of a tool that only reads begins (or ends) with. Any other tool may change something.
READING_VERBS = words(
    "get find search list lookup look fetch read check view show query calculate compute think describe count estimate "
    "retrieve verify validate browse is has can locate recommend suggest compare track detect explain faq help obtener "
    "buscar consultar listar chercher trouver lister suchen finden abrufen prüfen procurar cercare zoeken"
)
HANDOFF_VERBS = words("transfer escalate handoff handover connect forward route")
HANDOFF_PEOPLE = words("human agent agents representative specialist supervisor operator person live manager")

# What makes a rule a prohibition, in the languages that rules are most often written in.
PROHIBITIONS = words(
    "never don't mustn't shouldn't avoid refuse forbidden prohibited nie niemals keine keinen "
    "nunca jamás jamais mai nooit कभी मत"
)
PROHIBITIVE_PAIRS = frozenset(
    (
        ("do", "not"),
        ("must", "not"),
        ("should", "not"),
        ("may", "not"),
        ("shall", "not"),
        ("not", "to"),
        ("darf", "nicht"),
        ("nicht", "sagen"),
        ("no", "debe"),
        ("no", "debes"),
    )
)
# Rules that are about asking or saying, so that a question can break them.
SPEAKING_VERBS = words(
    "ask asks asking say says saying mention tell speak discuss talk request call recommend preguntar fragen"
)
RULE_STOPWORDS = words(
    "with from that this these those your their they them user customer caller agent must should shall will would "
    "could not never only each other than then when unless before after once more most make sure always have even "
    "within until either both between give given need needs about into same such which what where first does "
    "done been being were over also very just some there here agents customers callers users"
)
