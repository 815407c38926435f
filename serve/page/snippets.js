// Code to paste, for the model that is chosen.

const py = (value) => JSON.stringify(value);

/** {curl, python, javascript} for a model of some kind at a URL; `rows` are example inputs. */
export function snippets(kind, url, rows, needsKey) {
  return kind === "digit" || kind === "picture"
    ? ofPicture(url, needsKey)
    : ofRows(url, JSON.stringify(rows), needsKey);
}

function ofPicture(url, key) {
  return {
    curl: `curl -s '${url}' \\
  -H 'Content-Type: image/png' \\${key ? "\n  -H \"Authorization: Bearer $KEY\" \\" : ""}
  --data-binary @digit.png`,
    python: `import json
from urllib.request import Request, urlopen

headers = {"Content-Type": "image/png"${key ? ', "Authorization": f"Bearer {KEY}"' : ""}}
with open("digit.png", "rb") as file:
    request = Request(${py(url)}, file.read(), headers)

with urlopen(request) as response:
    answer = json.load(response)

for label, probability in answer["predictions"][0]:
    print(f"{label}  {probability:.1%}")`,
    javascript: `// image: a Blob, from <input type="file"> or canvas.toBlob
const response = await fetch(${py(url)}, {
  method: "POST",
  headers: { "Content-Type": image.type${key ? ", Authorization: `Bearer ${KEY}`" : ""} },
  body: image,
});

const { predictions } = await response.json();
for (const [label, probability] of predictions[0]) {
  console.log(label, probability);
}`,
  };
}

function ofRows(url, rows, key) {
  const quoted = `{"inputs": ${rows}}`.replaceAll("'", "'\\''");
  return {
    curl: `curl -s '${url}' \\
  -H 'Content-Type: application/json' \\${key ? "\n  -H \"Authorization: Bearer $KEY\" \\" : ""}
  -d '${quoted}'`,
    python: `import json
from urllib.request import Request, urlopen

headers = {"Content-Type": "application/json"${key ? ', "Authorization": f"Bearer {KEY}"' : ""}}
body = json.dumps({"inputs": ${rows}}).encode()

with urlopen(Request(${py(url)}, body, headers)) as response:
    answer = json.load(response)

print(answer["outputs"])`,
    javascript: `const response = await fetch(${py(url)}, {
  method: "POST",
  headers: { "Content-Type": "application/json"${key ? ", Authorization: `Bearer ${KEY}`" : ""} },
  body: JSON.stringify({ inputs: ${rows} }),
});

const { outputs } = await response.json();
console.log(outputs);`,
  };
}
