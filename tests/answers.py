"""Honest blueprints in four scripts, and the envelope around an answer, for the validator's tests."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from storyfi_lite import tasks
from storyfi_lite.engine.settings import SAMPLER, SamplingParams
from storyfi_lite.grammar.schema import dump
from storyfi_lite.protocol.messages import StoryRequest

ENGLISH: dict[str, Any] = {
    "title": "What the Tide Said",
    "genre": "literary fantasy",
    "setting": (
        "Marrow Point is a granite lighthouse on the last island before open water. For forty years Idris Vane has kept "
        "its lamp and logged the weather. Since his daughter drowned, the sea has begun to speak at low tide: first in her "
        "voice, then in the voices of ships that never came home. The mainland plans to automate the light by autumn, and "
        "every fog brings strangers who want to hear."
    ),
    "core_conflict": (
        "The waters offer Idris one true conversation with his child if he lets the lamp go dark for a single night, "
        "while a crowded ferry is due through the reef."
    ),
    "themes": ["grief", "duty", "bargains", "listening"],
    "tone": "quiet and uncanny",
    "target_audience": "adult readers of slow, strange fiction",
}
CHINESE: dict[str, Any] = {
    "title": "听海的人",
    "genre": "奇幻",
    "setting": (
        "北境最外侧的礁岛上立着一座花岗岩灯塔，潮水退去时，岛与大陆之间会露出一条只走得通两个时辰的石路。守灯人顾沉在这里住了三十一年，"
        "每晚添油、擦镜、记录风向。女儿落水失踪之后，他开始在退潮的深夜听见大海开口：起初是孩子的笑声，后来是沉船水手的低语，再后来，"
        "海浪会回答他的问题。镇上的人分成两派，老渔民敬畏这声音，把第一网鱼倒回水里；年轻人却想把灯塔改成旅馆，卖票让游客来听。"
        "航运局宣布入冬前换上自动灯，老人必须离岛。雾季比往年来得早，空气里有铁锈和海藻的气味，夜里常有不认识的船在礁石外徘徊，"
        "船头无人，桅杆上却挂着他女儿失踪那天穿过的红色雨衣。岛上的鸟一只接一只飞走，只剩一只瘸腿的海鸥守着油桶，仿佛也在等谁回来。"
        "每一盏灯油都记着账，每一句回答都要付出代价。"
    ),
    "core_conflict": (
        "大海答应让顾沉与女儿说上一整夜的话，条件是熄灭灯塔一晚；而就在那一晚，载着全镇迁居者的渡轮将穿过暗礁。他若守住灯，"
        "便永远失去最后一次道别；他若熄灯，便要背负几百条性命。航运局派来的年轻技师沈禾察觉了他的犹豫，她自己的哥哥也在渡轮上，"
        "却又偷偷盼望海水替她问一句当年沉船的真相，于是两个人在同一夜里互相看守，也互相隐瞒。"
    ),
    "themes": ["哀悼", "职责", "交换"],
    "tone": "沉静而诡异",
    "target_audience": "喜欢慢节奏奇幻的成年读者",
}
JAPANESE = {
    "title": "潮の声",
    "genre": "幻想小説",
    "setting": (
        "本土から船で半日かかる小さな岩の島に、古い灯台がひとつ立っている。灯台守の源さんは四十年のあいだ、毎晩ランプを磨き、"
        "風向きを帳面に書きつけてきた。娘を嵐で失ってから、引き潮の夜になると海が話しかけてくるようになった。はじめは娘の笑い声、"
        "やがて沈んだ船の乗組員たちのささやき。村の漁師たちはその声を恐れ、最初の獲物を水に返す習わしを守っている。いっぽう役場は"
        "秋までに灯りを自動化すると決め、若い技師を島へ送りこんだ。霧の季節はいつもより早く訪れ、空気には錆と海藻の匂いが満ちる。"
        "夜ごと見知らぬ船が暗礁の外をさまよい、舳先には誰もいないのに、帆柱には赤い雨合羽が揺れている。島の鳥は次々に去り、"
        "足の悪いかもめが一羽だけ、油の樽のそばで誰かの帰りを待っている。"
    ),
    "core_conflict": (
        "海は源さんに、灯りを一晩だけ消せば娘と朝まで話させてやると持ちかける。だがその夜、村人を乗せた渡し船が暗礁を抜けるはずだった。"
        "守れば別れの言葉を永遠に失い、消せば大勢の命を背負うことになる。若い技師もまた兄を海に奪われており、二人は同じ夜に互いを見張り、"
        "互いに嘘をつきながら、潮が満ちるのを待ちつづける。"
    ),
    "themes": ["喪失", "務め", "取引"],
    "tone": "静かで不穏",
    "target_audience": "大人の読者",
}
THAI = {
    "title": "เสียงจากทะเล",
    "genre": "แฟนตาซี",
    "setting": (
        "ประภาคารหินตั้งอยู่บนเกาะสุดท้ายก่อนถึงน้ำลึก ลุงสมานเฝ้าตะเกียงมาสี่สิบปี จดทิศลมลงสมุดทุกคืน "
        "ตั้งแต่ลูกสาวจมหายไปกับพายุ ทะเลก็เริ่มพูดกับเขาในคืนน้ำลง แรกเริ่มเป็นเสียงหัวเราะของเด็ก "
        "ต่อมาเป็นคำกระซิบของลูกเรือที่ไม่เคยได้กลับบ้าน ชาวประมงแก่ ๆ เกรงกลัวเสียงนั้นและคืนปลาตัวแรกให้คลื่น "
        "ส่วนคนหนุ่มอยากเปิดโรงแรมขายตั๋วให้นักท่องเที่ยวมาฟัง ทางการประกาศว่าจะเปลี่ยนเป็นไฟอัตโนมัติก่อนฤดูหนาว"
    ),
    "core_conflict": (
        "ทะเลเสนอให้ลุงสมานได้คุยกับลูกสาวหนึ่งคืนเต็ม หากยอมดับไฟประภาคาร แต่คืนนั้นเรือข้ามฟากที่บรรทุกคนทั้งหมู่บ้าน"
        "จะต้องแล่นผ่านแนวหินโสโครก เขาต้องเลือกระหว่างคำลาครั้งสุดท้ายกับชีวิตคนนับร้อย"
    ),
    "themes": ["ความเศร้า", "หน้าที่", "การแลกเปลี่ยน"],
    "tone": "เงียบและลึกลับ",
    "target_audience": "ผู้ใหญ่ที่ชอบเรื่องแปลก",
}
# What an honest answer in each script was asked for.
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("a lighthouse keeper who hears the sea speak", ENGLISH),
    ("一位守灯人听见大海说话", CHINESE),
    ("海の声を聞く灯台守", JAPANESE),
    ("คนเฝ้าประภาคารได้ยินเสียงทะเลพูด", THAI),
]


def blueprint_request(user_input: str = ASKED[0][0], **fields: Any) -> StoryRequest:
    return StoryRequest(task_type="blueprint", user_input=user_input, **fields)


def envelope(data: Any, **changes: Any) -> dict[str, Any]:
    """A response as a local miner without a proof sends it; None leaves a field out."""
    fields = {
        "output_data": data,
        "output_text": None if "output_text" in changes else dump(data),
        "generation_time": 0.1,
        "miner_version": "test",
        "model_info": {"mode": "local", "name": "m", "version": "1", "provider": "p", "parameters": {}},
        "miner_mode": "LocalModelLoader",
        "model_name": "llama-3-70b",
        "gpu_memory_gb": 96.0,
        **changes,
    }
    return {key: value for key, value in fields.items() if value is not None}


def as_bytes(data: Any, **changes: Any) -> bytes:
    return json.dumps(envelope(data, **changes), ensure_ascii=False).encode()


def header(request: StoryRequest, **changes: Any) -> dict[str, Any]:
    """A proof's header that fits the request; no replay would bear it out."""
    task = tasks.get(request.task_type)
    return {
        "sampler": SAMPLER,
        **asdict(SamplingParams(seed=7)),
        "max_tokens": 900,
        "model_sha256": "a" * 64,
        "quantization": "Q4_1",
        "kv_type": "f16",
        "prompt_version": task.script(request).version,
        "prompt_sha256": "b" * 64,
        "grammar_sha256": task.constraint(request).sha256,
        "engine": "e 1",
        **changes,
    }
