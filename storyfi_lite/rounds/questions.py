"""Chooses what the next round asks: a task by the network's shares, a user's input, the earlier stages that the task needs.

Earlier stages are real: the best answers of earlier rounds, kept as stories. All chance comes from the caller's `dice`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from storyfi_lite.protocol.limits import CHAPTER_COUNT
from storyfi_lite.protocol.messages import StoryRequest, TaskName

SHARES: dict[TaskName, float] = {"blueprint": 0.40, "characters": 0.25, "story_arc": 0.25, "chapters": 0.10}
STAGES: tuple[TaskName, ...] = get_args(TaskName)

# Eight thousand inputs in each language: too many to answer beforehand.
_EN = (
    "a lighthouse keeper|a clockmaker's daughter|a retired thief|two rival cooks|a ship's doctor|the last librarian|a blind "
    "painter|a village of beekeepers|a failed magician|an android gardener|a young judge|a map maker|a deaf composer|a night "
    "watchman|a puppeteer|three sisters|a court jester|a train conductor|a diver|an astronomer",
    "in a city built on a glacier|during the longest winter|on a generation ship|under a drowned cathedral|in a town "
    "without mirrors|at the border of two wars|on an island that moves|in Shanghai in 1935|in the desert of salt|inside a "
    "dream factory|on the night train north|in a school for forgers|at the edge of a volcano|in the capital of ghosts|on the "
    "far side of the moon|in a valley of echoes|in a market that opens at midnight|beneath the old observatory|in a house "
    "with one door too many|on the river of names",
    "finds a letter from tomorrow|must hide what everybody wants|hears a voice that nobody else hears|has one day to pay a "
    "debt|loses the memory of one person|is asked to betray a friend|inherits a locked room|discovers who they were|makes a "
    "promise to an enemy|steals the wrong thing|is mistaken for a hero|learns the price of silence|follows a stranger's "
    "shadow|wakes what should sleep|builds something that must never run|waits for a ship that sank|teaches a machine to "
    "lie|breaks the oldest law|keeps a secret alive|goes back once too often",
)
_ZH = (
    "灯塔守护人|钟表匠的女儿|退休的小偷|两位对手厨师|船上的医生|最后的图书管理员|失明的画家|养蜂人的村庄|失败的魔术师|园丁机器人|"
    "年轻的法官|制图师|失聪的作曲家|守夜人|木偶师|三姐妹|宫廷小丑|列车长|潜水员|天文学家",
    "在冰川上的城市里|在最长的冬天里|在世代飞船上|在沉没的教堂下|在没有镜子的小镇|在两场战争的边界|在会移动的岛上|在1935年的上海|"
    "在盐的沙漠里|在梦工厂里|在北上的夜车上|在伪造者的学校|在火山边|在鬼魂的都城|在月球背面|在回声的山谷|在午夜开张的集市|"
    "在旧天文台下面|在多了一扇门的房子里|在名字的河上",
    "收到一封来自明天的信|必须藏起人人想要的东西|听见别人听不见的声音|只有一天时间还债|忘记了一个人|被要求背叛朋友|继承了一间上锁的房间|"
    "发现自己从前是谁|向敌人许下诺言|偷错了东西|被误认为英雄|明白了沉默的代价|跟随陌生人的影子|唤醒了该沉睡的东西|造出绝不能启动的机器|"
    "等待一艘沉没的船|教机器说谎|打破最古老的法律|守住一个秘密|又一次回到过去",
)


@dataclass(frozen=True)
class Story:
    """Holds a user's input and the stages answered so far. `id`: the database's; None for a story that is not stored yet."""

    user_input: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    id: int | None = None

    def is_ready_for(self, task: TaskName) -> bool:
        """Return whether `task` comes next: all stages before it are answered and it is not."""
        return list(self.stages) == list(STAGES[: STAGES.index(task)])


@dataclass(frozen=True)
class Question:
    request: StoryRequest
    story: Story


def draw(dice: random.Random, stories: Sequence[Story], inputs: Sequence[str] = ()) -> Question:
    """Draw the next question. `inputs`: users' inputs to draw from; if empty, they are made up, half of them Chinese. If no story
    is ready for the task that was drawn, an earlier stage is asked instead."""
    at = STAGES.index(dice.choices(list(SHARES), list(SHARES.values()))[0])
    for task in reversed(STAGES[1 : at + 1]):
        ready = [story for story in stories if story.is_ready_for(task)]
        if ready:
            return _question(dice, task, dice.choice(ready))
    text = dice.choice(inputs) if inputs else made_up(dice)
    return _question(dice, "blueprint", Story(text))


def made_up(dice: random.Random) -> str:
    """Make up a user's input, in English or in Chinese."""
    words, space = dice.choice(((_EN, " "), (_ZH, "")))
    return space.join(dice.choice(part.split("|")) for part in words)


def _question(dice: random.Random, task: TaskName, story: Story) -> Question:
    chapters = [dice.randint(1, CHAPTER_COUNT)] if task == "chapters" else None
    fields = {"task_type": task, "user_input": story.user_input, "chapter_ids": chapters, **story.stages}
    return Question(StoryRequest.model_validate(fields), story)
