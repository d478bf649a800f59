"""Applications as their frameworks' users write them; nothing in them knows of olsock."""

FLASK = """
import io

from flask import Flask, Response, abort, jsonify, redirect, request, send_file, session, url_for

app = Flask(__name__)
app.secret_key = "not a secret"

@app.route("/items/<name>", methods=["GET", "POST"])
def item(name):
    return jsonify(name=name, q=request.args.get("q"), form=request.form, host=request.host, url=request.base_url)

@app.get("/")
def index():
    session["seen"] = session.get("seen", 0) + 1
    return f"seen {session['seen']}"

@app.get("/go")
def go():
    return redirect(url_for("item", name="there"))

@app.post("/upload")
def upload():
    return {"size": len(request.files["file"].read()), "json": False}

@app.post("/json")
def json_():
    return request.get_json()

@app.get("/stream")
def stream():
    return Response((f"{n}\\n" for n in range(3)), mimetype="text/csv")

@app.get("/file")
def file():
    return send_file(io.BytesIO(b"contents"), download_name="a.txt")

@app.get("/broken")
def broken():
    raise ValueError("in the view")

@app.get("/late")
def late():
    def parts():
        yield b"first"
        raise ValueError("in the stream")
    return Response(parts())

@app.get("/teapot")
def teapot():
    abort(418)
"""

DJANGO = """
import asyncio

import django
from django.conf import settings
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path, reverse

settings.configure(
    SECRET_KEY="not a secret", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["shop.example"], MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
)
django.setup()

def item(request, name):
    return JsonResponse({"name": name, "q": request.GET.get("q"), "path": request.path, "body": request.body.decode()})

async def later(request):
    await asyncio.sleep(0)
    return HttpResponse("later")

def stream(request):
    return StreamingHttpResponse(f"{n}," for n in range(3))

def go(request):
    return HttpResponseRedirect(reverse("item", args=["there"]))

def broken(request):
    raise ValueError("in the view")

urlpatterns = [
    path("items/<str:name>", item, name="item"), path("later", later), path("stream", stream), path("go", go),
    path("broken", broken), path("", later),
]
"""

FASTAPI = """
import asyncio
from contextlib import asynccontextmanager

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import BaseModel

@asynccontextmanager
async def lifespan(app):
    print("started up")
    yield {"made": "at startup"}

app = FastAPI(lifespan=lifespan)
worked = []

class Item(BaseModel):
    name: str
    price: float

@app.post("/items/{number}", status_code=201)
async def create(number: int, item: Item, q: str = ""):
    return {"number": number, "item": item, "q": q}

@app.get("/sync")
def sync(request: Request):
    return {"state": request.state.made, "url": str(request.url), "root": request.scope["root_path"]}

@app.get("/")
async def index():
    return "index"

@app.get("/stream")
async def stream():
    async def parts():
        for n in range(3):
            yield f"{n},"
            await asyncio.sleep(0)
    return StreamingResponse(parts(), media_type="text/event-stream")

@app.get("/endless")
async def endless():
    async def parts():
        try:
            while True:
                yield "x" * 1000
                await asyncio.sleep(0)
        finally:
            worked.append("closed")
    return StreamingResponse(parts())

@app.get("/later")
async def later(tasks: BackgroundTasks):
    async def work():
        await asyncio.sleep(0.2)
        worked.append("in the background")
    tasks.add_task(work)
    return "at once"

@app.get("/worked")
async def told():
    return worked

@app.get("/gone")
async def gone():
    raise HTTPException(410, "gone")

@app.get("/broken")
async def broken():
    raise ValueError("in the endpoint")

@app.get("/go")
async def go(request: Request):
    return RedirectResponse(request.url_for("sync"))

@app.websocket("/chat/{room}")
async def chat(socket: WebSocket, room: str):
    await socket.accept(subprotocol="chat")
    try:
        while True:
            said = await socket.receive_text()
            if said == "leave":
                await socket.close(4000, "left")
                return
            await socket.send_json({"room": room, "said": said})
    except WebSocketDisconnect as left:
        worked.append(left.code)
"""
