"""Ways in which Python code may get a number that is not among its arguments, and in which the number changes.

Each is of three texts: what comes before, the expression, which is 1.0, and a statement after which it is 2.0.
"""

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

HEAD = """
import abc, array, builtins, collections, contextlib, contextvars, copy, ctypes, dataclasses, datetime, decimal, enum
import functools, importlib, inspect, itertools, json, logging, math, operator, os, pickle, random, sys, threading, time
import types, weakref
import numpy as np
import torch
from torch import nn

class Box:
    def __init__(self, **values): vars(self).update(values)
settings = types.ModuleType("settings_of_ways"); sys.modules["settings_of_ways"] = settings; settings.slope = 1.0
"""


@contextmanager
def undone() -> Iterator[None]:
    """Put back what the ways change."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    for name in ("settings_of_ways", "settings_of_ways.inner", "way_to_read"):
        sys.modules.pop(name, None)


def spike_whose_backward(read: Callable[[], float]) -> Any:
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return (z > 0).to(z.dtype)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * read()

    return Spike


class Way(NamedTuple):
    before: str
    read: str
    change: str

    def open(self) -> dict[str, Any]:
        """A new module with a function ``read`` and a function ``change``."""
        module = types.ModuleType("way_to_read")
        exec(HEAD + self.before, vars(module))
        exec(self.read if self.read.startswith("def") else f"def read(): return {self.read}", vars(module))
        exec("def change():\n  global slope, box, table, get\n  " + self.change.replace("\n", "\n  "), vars(module))
        sys.modules["way_to_read"] = module
        return vars(module)


META = "class Meta(type):\n  {}\nclass Config(metaclass=Meta): pass"
MODE = "class Mode(enum.Enum):\n  A = 3\n"

SEEN = {
    "global": Way("slope = 1.0", "slope", "slope = 2.0"),
    "global of a helper": Way("slope = 1.0\ndef helper(): return slope", "helper()", "slope = 2.0"),
    "global that is new": Way("builtins.slope = 1.0", "slope", "slope = 2.0; del builtins.slope"),
    "attribute that is new": Way("box = Box()", "getattr(box, 'slope', 1.0)", "box.slope = 2.0"),
    "names of attributes": Way("box = Box(); n = len(dir(box))", "len(dir(box)) - n + 1.0", "box.slope = 2.0"),
    "closure": Way(
        "def outer():\n  k = 1.0\n  def to(v):\n    nonlocal k\n    k = v\n  return (lambda: k), to\nget, to = outer()",
        "get()",
        "to(2.0)",
    ),
    "default": Way("def get(k=1.0): return k", "get()", "get.__defaults__ = (2.0,)"),
    "named default": Way("def get(*, k=1.0): return k", "get()", "get.__kwdefaults__['k'] = 2.0"),
    "mutable default": Way("table = [1.0]\ndef get(k=table): return k[0]", "get()", "table[0] = 2.0"),
    "attribute of a function": Way("def get(): return get.slope\nget.slope = 1.0", "get()", "get.slope = 2.0"),
    "another code": Way("def get(): return 1.0", "get()", "get.__code__ = (lambda: 2.0).__code__"),
    "attribute": Way("box = Box(slope=1.0)", "box.slope", "box.slope = 2.0"),
    "attribute of an attribute": Way("box = Box(a=Box(slope=1.0))", "box.a.slope", "box.a.slope = 2.0"),
    "attribute by a text": Way("box = Box(slope=1.0)", "getattr(box, 'sl' + 'ope')", "box.slope = 2.0"),
    "attribute by an alias of getattr": Way(
        "box = Box(slope=1.0)\nlook_up = getattr", "look_up(box, 'sl' + 'ope')", "box.slope = 2.0"
    ),
    "attribute by vars": Way("box = Box(slope=1.0)", "vars(box)['sl' + 'ope']", "box.slope = 2.0"),
    "attribute by __dict__": Way("box = Box(slope=1.0)", "box.__dict__['sl' + 'ope']", "box.slope = 2.0"),
    "attribute that hides that of the class": Way("Box.slope = 1.0\nbox = Box()", "box.slope", "box.slope = 2.0"),
    "all attributes": Way("box = Box(a=1.0)", "sum(vars(box).values())", "box.b = 1.0"),
    "another dictionary of an object": Way("box = Box(slope=1.0)", "box.slope", "box.__dict__ = {'slope': 2.0}"),
    "another class of an object": Way(
        "class A: slope = 1.0\nclass B: slope = 2.0\nbox = A()", "box.slope", "box.__class__ = B"
    ),
    "slot": Way("class Slots: __slots__ = ('slope',)\nbox = Slots()\nbox.slope = 1.0", "box.slope", "box.slope = 2.0"),
    "property": Way(
        "class Of:\n  k = 1.0\n  @property\n  def slope(self): return self.k\nbox = Of()", "box.slope", "box.k = 2.0"
    ),
    "method": Way(
        "class Of:\n  k = 1.0\n  def get(self): return self.k\nget = Of().get", "get()", "get.__self__.k = 2.0"
    ),
    "class method": Way("class Of:\n  k = 1.0\n  @classmethod\n  def get(c): return c.k", "Of.get()", "Of.k = 2.0"),
    "descriptor": Way(
        "class D:\n  k = 1.0\n  def __get__(self, o, c=None): return self.k\nd = D()\nclass Of: slope = d\nbox = Of()",
        "box.slope",
        "d.k = 2.0",
    ),
    "__getattr__": Way(
        "class Of:\n  table = {'x': 1.0}\n  def __getattr__(self, n): return self.table['x']\nbox = Of()",
        "box.slope",
        "Of.table['x'] = 2.0",
    ),
    "__getitem__": Way(
        "class Of:\n  k = 1.0\n  def __getitem__(self, n): return self.k\nbox = Of()", "box['a']", "box.k = 2.0"
    ),
    "__call__": Way("class Of:\n  k = 1.0\n  def __call__(self): return self.k\nget = Of()", "get()", "get.k = 2.0"),
    "__float__": Way(
        "class Of:\n  k = 1.0\n  def __float__(self): return self.k\nget = Of()", "float(get)", "get.k = 2.0"
    ),
    "__repr__": Way(
        "class Of:\n  k = 1.0\n  def __repr__(self): return str(self.k)\nbox = Of()", "float(f'{box}')", "box.k = 2.0"
    ),
    "__eq__": Way(
        "class Of:\n  k = 1.0\n  def __eq__(self, o): return self.k == o\nbox = Of()",
        "1.0 + (box == 2.0)",
        "box.k = 2.0",
    ),
    "with": Way(
        "class Of:\n  k = 1.0\n  def __enter__(self): return self.k\n  def __exit__(self, *e): pass\nbox = Of()",
        "def read():\n  with box as k: return k",
        "box.k = 2.0",
    ),
    "match": Way(
        "class Of:\n  __match_args__ = ('slope',)\n  def __init__(self): self.slope = 1.0\nbox = Of()",
        "def read():\n  match box:\n    case Of(k): return k",
        "box.slope = 2.0",
    ),
    "match by name": Way(
        "box = Box(slope=1.0)", "def read():\n  match box:\n    case Box(slope=k): return k", "box.slope = 2.0"
    ),
    "class": Way("class Config: slope = 1.0", "Config.slope", "Config.slope = 2.0"),
    "base of a class": Way("class A: slope = 1.0\nclass Config(A): pass", "Config.slope", "A.slope = 2.0"),
    "another base": Way(
        "class Z: pass\nclass A(Z): slope = 1.0\nclass B(Z): slope = 2.0\nclass Config(A): pass",
        "Config.slope",
        "Config.__bases__ = (B,)",
    ),
    "object made inside": Way(
        "k = 1.0\nclass Of:\n  def __init__(self): self.slope = k\n", "Of().slope", "globals()['k'] = 2.0"
    ),
    "class made inside": Way(
        "k = 1.0\nclass Of:\n  def __init_subclass__(cls): cls.slope = k\n",
        "def read():\n  class New(Of): pass\n  return New.slope",
        "globals()['k'] = 2.0",
    ),
    "metaclass": Way(META.format("slope = 1.0"), "Config.slope", "Meta.slope = 2.0"),
    "__getattr__ of a metaclass": Way(
        "table = [1.0]\n" + META.format("def __getattr__(cls, name): return table[0]"), "Config.slope", "table[0] = 2.0"
    ),
    "property of a metaclass": Way(
        META.format("k = 1.0\n  @property\n  def slope(cls): return cls.k"), "Config.slope", "Meta.k = 2.0"
    ),
    "attribute of a member of an Enum": Way(MODE + "Mode.A.slope = 1.0", "Mode.A.slope", "Mode.A.slope = 2.0"),
    "attribute of a member by its name": Way(MODE + "Mode.A.slope = 1.0", "Mode['A'].slope", "Mode.A.slope = 2.0"),
    "value of a member": Way(
        MODE + "Mode.A._value_ = Box(slope=1.0)", "Mode.A.value.slope", "Mode.A.value.slope = 2.0"
    ),
    "property of a member": Way(
        "slope = 1.0\nclass Mode(enum.Enum):\n  A = 1\n  @property\n  def s(self): return slope\nm = Mode.A",
        "m.s",
        "slope = 2.0",
    ),
    "dataclass": Way("@dataclasses.dataclass\nclass C: slope: float\nbox = C(1.0)", "box.slope", "box.slope = 2.0"),
    "dataclass as a tuple": Way(
        "@dataclasses.dataclass\nclass C: slope: float\nbox = C(1.0)", "dataclasses.astuple(box)[0]", "box.slope = 2.0"
    ),
    "named tuple": Way("N = collections.namedtuple('N', 'slope')\nbox = N(1.0)", "box.slope", "box = N(2.0)"),
    "namespace": Way("box = types.SimpleNamespace(slope=1.0)", "box.slope", "box.slope = 2.0"),
    "arguments of a program": Way(
        "import argparse\nbox = argparse.Namespace(slope=1.0)", "box.slope", "box.slope = 2.0"
    ),
    "dict": Way("table = {'k': 1.0}", "table['k']", "table['k'] = 2.0"),
    "dict in a list": Way("table = [{'k': 1.0}]", "table[0]['k']", "table[0]['k'] = 2.0"),
    "OrderedDict": Way("table = collections.OrderedDict(k=1.0)", "table['k']", "table['k'] = 2.0"),
    "defaultdict": Way("table = collections.defaultdict(float, k=1.0)", "table['k']", "table['k'] = 2.0"),
    "ChainMap": Way("table = collections.ChainMap({}, {'k': 1.0})", "table['k']", "table['k'] = 2.0"),
    "UserDict": Way("table = collections.UserDict(k=1.0)", "table['k']", "table['k'] = 2.0"),
    "dict of a class of one's own": Way(
        "class Own(dict):\n  k = 1.0\n  def __missing__(self, n): return self.k\ntable = Own()",
        "table['a']",
        "table.k = 2.0",
    ),
    "list": Way("table = [1.0]", "table[0]", "table[0] = 2.0"),
    "set": Way("table = {1.0}", "sum(table)", "table.clear(); table.add(2.0)"),
    "deque": Way("table = collections.deque([1.0])", "table[0]", "table[0] = 2.0"),
    "NumPy array": Way("table = np.ones(2)", "float(table[0])", "table[0] = 2.0"),
    "NumPy number": Way("slope = np.float32(1.0)", "float(slope)", "slope = np.float32(2.0)"),
    "NumPy array with attributes": Way(
        "class A(np.ndarray): pass\nbox = np.ones(2).view(A)\nbox.slope = 1.0", "box.slope", "box.slope = 2.0"
    ),
    "module of one's own": Way("", "settings.slope", "settings.slope = 2.0"),
    "__getattr__ of a module": Way(
        "del settings.slope\ntable = [1.0]\nsettings.__getattr__ = lambda name: table[0]",
        "settings.slope",
        "table[0] = 2.0",
    ),
    "class of a module": Way(
        "table = [1.0]\ndel settings.slope\nclass M(types.ModuleType):\n  slope = property(lambda s: table[0])\n"
        "settings.__class__ = M",
        "settings.slope",
        "table[0] = 2.0",
    ),
    "import from": Way("", "def read():\n  from settings_of_ways import slope\n  return slope", "settings.slope = 2.0"),
    "import": Way(
        "", "def read():\n  import settings_of_ways\n  return settings_of_ways.slope", "settings.slope = 2.0"
    ),
    "import as": Way("", "def read():\n  import settings_of_ways as s\n  return s.slope", "settings.slope = 2.0"),
    "import of a submodule": Way(
        "inner = types.ModuleType('settings_of_ways.inner'); sys.modules[inner.__name__] = settings.inner = inner\n"
        "inner.slope = 1.0",
        "def read():\n  import settings_of_ways.inner as s\n  return s.slope",
        "inner.slope = 2.0",
    ),
    "relative import": Way(
        "__package__ = 'settings_of_ways'\ninner = types.ModuleType('settings_of_ways.inner')\n"
        "sys.modules[inner.__name__] = settings.inner = inner\nsettings.__path__ = []\ninner.slope = 1.0",
        "def read():\n  from .inner import slope\n  return slope",
        "inner.slope = 2.0",
    ),
    "import of a helper": Way(
        "exec('def get(): return slope', vars(settings))",
        "def read():\n  from settings_of_ways import get\n  return get()",
        "settings.slope = 2.0",
    ),
    "attrgetter": Way("box = Box(slope=1.0)\nget = operator.attrgetter('slope')", "get(box)", "box.slope = 2.0"),
    "attrgetter of a path": Way(
        "box = Box(a=Box(slope=1.0))\nget = operator.attrgetter('a.slope')", "get(box)", "box.a.slope = 2.0"
    ),
    "attrgetter made inside": Way(
        "box = Box(slope=1.0)\nname = 'slope'", "operator.attrgetter(name)(box)", "box.slope = 2.0"
    ),
    "methodcaller": Way(
        "class Of:\n  k = 1.0\n  def slope(self): return self.k\nbox = Of()\nget = operator.methodcaller('slope')",
        "get(box)",
        "box.k = 2.0",
    ),
    "itemgetter": Way("table = {'k': 1.0}\nget = operator.itemgetter('k')", "get(table)", "table['k'] = 2.0"),
    "partial of getattr": Way(
        "box = Box(slope=1.0)\nget = functools.partial(getattr, box, 'slope')", "get()", "box.slope = 2.0"
    ),
    "partial": Way(
        "box = Box(slope=1.0)\ndef of(b): return b.slope\nget = functools.partial(of, box)", "get()", "box.slope = 2.0"
    ),
    "map of getattr": Way(
        "box = Box(slope=1.0)\nname = 'slope'", "next(map(getattr, [box], [name]))", "box.slope = 2.0"
    ),
    "reduce": Way("box = Box(slope=1.0)", "functools.reduce(lambda a, b: a * b.slope, [box], 1.0)", "box.slope = 2.0"),
    "wrapped": Way(
        "slope = 1.0\ndef wrap(f):\n  @functools.wraps(f)\n  def g(): return f()\n  return g\n"
        "@wrap\ndef get(): return slope",
        "get()",
        "slope = 2.0",
    ),
    "context manager": Way(
        "slope = 1.0\n@contextlib.contextmanager\ndef of(): yield slope",
        "def read():\n  with of() as k: return k",
        "slope = 2.0",
    ),
    "generator": Way("slope = 1.0\ndef of(): yield slope", "next(of())", "slope = 2.0"),
    "comprehension": Way("table = [1.0]", "sum([k for k in table])", "table[0] = 2.0"),
    "copy": Way("box = Box(slope=1.0)", "copy.copy(box).slope", "box.slope = 2.0"),
    "format": Way("box = Box(slope=1.0)\ntext = '{0.slope}'", "float(text.format(box))", "box.slope = 2.0"),
    "builtin of one's own": Way("builtins.of_ways = 1.0", "of_ways", "builtins.of_ways = 2.0"),
    "attribute of an nn.Module": Way("class M(nn.Module):\n  slope = 1.0\nbox = M()", "box.slope", "box.slope = 2.0"),
    "mode of an nn.Module": Way("box = nn.Module()", "1.0 if box.training else 2.0", "box.eval()"),
    "inner nn.Module": Way(
        "class M(nn.Module):\n  def __init__(self):\n    super().__init__()\n    self.inner = nn.LeakyReLU(1.0)\n"
        "box = M()",
        "box.inner.negative_slope",
        "box.inner.negative_slope = 2.0",
    ),
    "children of an nn.Module": Way(
        "class M(nn.Module):\n  def __init__(self):\n    super().__init__()\n    self.a = nn.LeakyReLU(1.0)\nbox = M()",
        "next(box.children()).negative_slope",
        "box.a.negative_slope = 2.0",
    ),
    "attribute that only PyTorch's code reads": Way(
        "class M(nn.LeakyReLU): pass\nbox = M(1.0)", "float(-box(torch.tensor(-1.0)))", "box.negative_slope = 2.0"
    ),
    "number of threads": Way("torch.set_num_threads(1)", "float(torch.get_num_threads())", "torch.set_num_threads(2)"),
    "deterministic mode": Way(
        "torch.use_deterministic_algorithms(False)",
        "1.0 + torch.are_deterministic_algorithms_enabled()",
        "torch.use_deterministic_algorithms(True)",
    ),
    "setting that is imported": Way(
        "from torch import get_num_threads\ntorch.set_num_threads(1)",
        "float(get_num_threads())",
        "torch.set_num_threads(2)",
    ),
    "setting that is imported inside": Way(
        "torch.set_num_threads(1)",
        "def read():\n  from torch import get_num_threads\n  return float(get_num_threads())",
        "torch.set_num_threads(2)",
    ),
    "setting by a closure": Way(
        "torch.set_num_threads(1)\ndef outer():\n  t = torch\n  return lambda: float(t.get_num_threads())\n"
        "get = outer()",
        "get()",
        "torch.set_num_threads(2)",
    ),
    "precision of products": Way(
        "torch.set_float32_matmul_precision('highest')",
        "{'highest': 1.0, 'high': 2.0}[torch.get_float32_matmul_precision()]",
        "torch.set_float32_matmul_precision('high')",
    ),
}
"""These are right."""

REFUSED = {
    "sys.modules": Way("", "sys.modules['settings_of_ways'].slope", "settings.slope = 2.0"),
    "import_module": Way("", "importlib.import_module('settings_of_ways').slope", "settings.slope = 2.0"),
    "import_module that is imported": Way(
        "from importlib import import_module", "import_module('settings_of_ways').slope", "settings.slope = 2.0"
    ),
    "__import__": Way("", "__import__('settings_of_ways').slope", "settings.slope = 2.0"),
    "globals": Way("slope = 1.0", "globals()['slope']", "slope = 2.0"),
    "alias of globals": Way("slope = 1.0\nall_of = globals", "all_of()['slope']", "slope = 2.0"),
    "__globals__": Way("slope = 1.0\ndef get(): pass", "get.__globals__['slope']", "slope = 2.0"),
    "eval": Way("slope = 1.0", "eval('slope')", "slope = 2.0"),
    "builtins.eval": Way("slope = 1.0", "builtins.eval('slope', builtins.globals())", "slope = 2.0"),
    "frame": Way("slope = 1.0", "sys._getframe().f_globals['slope']", "slope = 2.0"),
    "inspect": Way("box = Box(slope=1.0)", "inspect.getattr_static(box, 'slope')", "box.slope = 2.0"),
    "subclasses": Way("class A: pass\nclass B(A): slope = 1.0", "A.__subclasses__()[0].slope", "B.slope = 2.0"),
    "pickle": Way("box = Box(slope=1.0)", "pickle.loads(pickle.dumps(vars(box)))['slope']", "box.slope = 2.0"),
    "environment": Way(
        "os.environ['OF_WAYS'] = '1.0'", "float(os.environ['OF_WAYS'])", "os.environ['OF_WAYS'] = '2.0'"
    ),
    "getenv": Way("os.environ['OF_WAYS'] = '1.0'", "float(os.getenv('OF_WAYS'))", "os.environ['OF_WAYS'] = '2.0'"),
    "environment that is imported": Way(
        "from os import environ\nos.environ['OF_WAYS'] = '1.0'",
        "float(environ['OF_WAYS'])",
        "os.environ['OF_WAYS'] = '2.0'",
    ),
    "file": Way(
        "import tempfile\npath = tempfile.mktemp()\nopen(path, 'w').write('1.0')",
        "def read():\n  with open(path) as f: return float(f.read())",
        "open(path, 'w').write('2.0')",
    ),
    "logger": Way(
        "box = logging.getLogger('of_ways'); box.setLevel(1)", "float(box.getEffectiveLevel())", "box.setLevel(2)"
    ),
    "name of a thread": Way(
        "threading.current_thread().name = '1.0'",
        "float(threading.current_thread().name)",
        "threading.current_thread().name = '2.0'",
    ),
    "thread": Way("box = threading.current_thread(); box.name = '1.0'", "float(box.name)", "box.name = '2.0'"),
    "local of a thread": Way("box = threading.local(); box.slope = 1.0", "box.slope", "box.slope = 2.0"),
    "context variable": Way("box = contextvars.ContextVar('box', default=1.0)", "box.get()", "box.set(2.0)"),
    "weak reference": Way("a = Box(slope=1.0)\nbox = weakref.ref(a)", "box().slope", "a.slope = 2.0"),
    "weak proxy": Way("a = Box(slope=1.0)\nbox = weakref.proxy(a)", "box.slope", "a.slope = 2.0"),
    "ctypes": Way("box = ctypes.c_double(1.0)", "box.value", "box.value = 2.0"),
    "array": Way("box = array.array('d', [1.0])", "box[0]", "box[0] = 2.0"),
    "bytearray": Way("box = bytearray(b'\\1')", "float(box[0])", "box[0] = 2"),
    "memoryview": Way("a = bytearray(b'\\1')\nbox = memoryview(a)", "float(box[0])", "a[0] = 2"),
    "NumPy array of objects": Way(
        "a = Box(slope=1.0)\nbox = np.array([a], dtype=object)", "box[0].slope", "a.slope = 2.0"
    ),
    "large NumPy array": Way("box = np.ones(10000)", "float(box[0])", "box[0] = 2.0"),
    "NumPy generator": Way("box = np.random.default_rng(0)", "1.0 + box.integers(1)", "pass"),
    "NumPy settings": Way(
        "np.seterr(over='warn')", "{'warn': 1.0, 'ignore': 2.0}[np.geterr()['over']]", "np.seterr(over='ignore')"
    ),
    "random number": Way("", "1.0 + random.randint(0, 0)", "pass"),
    "time": Way("", "1.0 + (time.time() < 0)", "pass"),
    "iterator": Way("get = itertools.repeat(1.0)", "next(get)", "get = itertools.repeat(2.0)"),
    "cache": Way("slope = 1.0\n@functools.lru_cache\ndef of(): return slope", "of()", "slope = 2.0; of.cache_clear()"),
    "decimal": Way(
        "decimal.getcontext().prec = 1\nbox = decimal.Decimal('1.5')",
        "float(box + 0) - 1.0",
        "decimal.getcontext().prec = 5",
    ),
    "backend": Way(
        "torch.backends.cudnn.benchmark = False",
        "1.0 + torch.backends.cudnn.benchmark",
        "torch.backends.cudnn.benchmark = True",
    ),
    "seed": Way("torch.manual_seed(1)", "float(torch.initial_seed())", "torch.manual_seed(2)"),
    "generator of PyTorch": Way(
        "box = torch.Generator(); box.manual_seed(1)", "float(box.initial_seed())", "box.manual_seed(2)"
    ),
    "storage": Way("box = torch.ones(1).untyped_storage()", "1.0 + (box[0] != 0)", "box[0] = 1"),
    "tensor": Way("box = torch.ones(())", "float(box)", "box.fill_(2.0)"),
    "buffer": Way(
        "box = nn.Module()\nbox.register_buffer('slope', torch.ones(()))", "box.slope.item()", "box.slope.fill_(2.0)"
    ),
    "data of a tensor": Way("box = torch.ones(1)", "float(box)", "box.data.fill_(2.0)"),
    "NumPy memory of a tensor": Way("a = np.ones(1)\nbox = torch.from_numpy(a)", "float(box)", "a[0] = 2.0"),
}
"""These are refused, with a reason."""
