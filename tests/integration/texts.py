"""Texts of the kinds that students write, for measuring how two tokenizers cut them. Written for this, and plain."""

from __future__ import annotations

PROSE = """\
The harbour was quiet when Marguerite unlocked the bakery that morning, and the only sound came from the gulls
quarrelling over something on the breakwater. She lit the oven, weighed out the flour, and began, as she had
done every day for twenty years, to knead. Outside, the fog was lifting from the water; the lighthouse, which
had been invisible an hour ago, stood white and enormous against the hills.

"You're early," said the postman through the half-open door. He didn't come in. He never did, because of his
boots.

"I'm always early," she answered. "It's the bread that's late." There was a letter from the ministry, two
bills, and a postcard showing an unrecognisable cathedral in the snow. She read the postcard twice. Her
brother's handwriting had not improved, but he was well, he was working again, and he thought that he might
visit in September, provided that the trains were running and that she hadn't let his old room to somebody
from the university.

Nobody in the village remembered why the two of them had stopped speaking. Some said it was about the boat,
others that it was about their mother's house; the schoolteacher, who had an explanation for everything,
maintained that it had been a misunderstanding about a telephone call. Marguerite herself could have told
them, but nobody asked. She put the postcard behind the scales, where the flour would not reach it, and went
back to work.
"""

PYTHON = '''\
from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    """A customer's account; amounts are in cents."""

    owner: str
    balance: int = 0

    def deposit(self, amount: int) -> "Account":
        if amount <= 0:
            raise ValueError(f"cannot deposit {amount}")
        return Account(owner=self.owner, balance=self.balance + amount)

    def withdraw(self, amount: int) -> "Account":
        if amount > self.balance:
            raise ValueError(f"{self.owner} has only {self.balance}, not {amount}")
        return Account(owner=self.owner, balance=self.balance - amount)


def transfer(accounts: dict[str, Account], source: str, target: str, amount: int) -> None:
    """Moves money, or raises and moves nothing."""
    paid, received = accounts[source].withdraw(amount), accounts[target].deposit(amount)
    accounts[source], accounts[target] = paid, received


def total(accounts: dict[str, Account]) -> int:
    return sum(account.balance for account in accounts.values())


if __name__ == "__main__":
    accounts = {name: Account(name, balance=100) for name in ("ada", "grace", "edsger")}
    for source, target, amount in [("ada", "grace", 30), ("grace", "edsger", 55), ("edsger", "ada", 5)]:
        transfer(accounts, source, target, amount)
        print(source, "->", target, amount, total(accounts))
'''

JAVASCRIPT = """\
export async function fetchAll(urls, { limit = 4, retries = 2 } = {}) {
  const results = new Map();
  const queue = [...urls];
  const worker = async () => {
    while (queue.length > 0) {
      const url = queue.shift();
      for (let attempt = 0; attempt <= retries; attempt++) {
        const response = await fetch(url).catch((error) => ({ ok: false, error }));
        if (response.ok) {
          results.set(url, await response.json());
          break;
        }
        console.warn(`attempt ${attempt + 1} of ${url} failed`, response.status ?? response.error);
      }
    }
  };
  await Promise.all(Array.from({ length: limit }, worker));
  return results;
}
"""

ARITHMETIC = """\
A shop sells pencils at 3 for $0.75. How much do 28 pencils cost?
One pencil costs 0.75 / 3 = 0.25 dollars, so 28 pencils cost 28 * 0.25 = 7 dollars. The answer is $7.00.

Natalia sold 48 clips in April and half as many in May. In May she sold 48 / 2 = 24 clips, so she sold
48 + 24 = 72 clips altogether. #### 72

Compute 1,247 + 3,986 - 512. First 1,247 + 3,986 = 5,233. Then 5,233 - 512 = 4,721. So the result is 4,721.

If 3x + 7 = 52, then 3x = 45 and x = 15. Check: 3 * 15 + 7 = 45 + 7 = 52.
A train travels 180 km in 2.5 hours; its speed is 180 / 2.5 = 72 km/h.
In 40 minutes it travels 72 * (40 / 60) = 48 km.
The probability of two heads in three tosses is 3/8 = 0.375, or 37.5%.
"""

SCRIPTS = """\
今天天气很好,我们去公园散步吧。他说:“明天可能会下雨。”人工智能正在改变世界。
مرحبا بالعالم! كيف حالك اليوم؟ أريد أن أتعلم اللغة العربية، وأسافر إلى القاهرة في الصيف.
Great job! 🎉🎉 See you tomorrow 👋🏽 — bring the 🍕 and the 🎂, and don't forget 👩‍👩‍👧‍👦!
Привет, как дела? Ça va très bien, merci. Über die Brücke gehen wir später. こんにちは、世界。
"""

CODE = PYTHON + "\n" + JAVASCRIPT

BY_KIND = {"prose": PROSE, "code": CODE, "arithmetic": ARITHMETIC, "scripts": SCRIPTS}
"""English prose; Python and JavaScript; worked sums; Chinese, Arabic, emoji and more."""
