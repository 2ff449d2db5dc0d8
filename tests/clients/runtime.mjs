// The runtime of a Lambda function in JavaScript: it takes events from the Runtime API, one after the other.
const invocations = `http://${process.env.AWS_LAMBDA_RUNTIME_API}/2018-06-01/runtime/invocation`;

export async function serve(handle) {
  for (;;) {
    const next = await fetch(`${invocations}/next`);
    const id = next.headers.get("lambda-runtime-aws-request-id");
    try {
      const result = await handle(await next.json());
      await fetch(`${invocations}/${id}/response`, { method: "POST", body: JSON.stringify(result ?? null) });
    } catch (error) {
      const report = { errorType: error.name, errorMessage: error.message };
      await fetch(`${invocations}/${id}/error`, { method: "POST", body: JSON.stringify(report) });
    }
  }
}
