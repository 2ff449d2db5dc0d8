// npm's jose as the issuer of tokens: a JWK Set of public keys, one of secrets, and tokens that are signed with them.
import { exportJWK, generateKeyPair, generateSecret, SignJWT } from "jose";

const keys = [];
const secrets = [];
const tokens = {};
for (const alg of ["HS256", "RS256", "PS384", "ES256", "EdDSA"]) {
  const { privateKey, publicKey } =
    alg === "HS256"
      ? await generateSecret(alg, { extractable: true }).then((key) => ({ privateKey: key, publicKey: key }))
      : await generateKeyPair(alg, { extractable: true });
  (alg === "HS256" ? secrets : keys).push({ ...(await exportJWK(publicKey)), kid: alg, alg, use: "sig" });
  const sign = (claims, expires, header = { alg, kid: alg }) =>
    new SignJWT(claims).setProtectedHeader(header).setIssuedAt().setExpirationTime(expires).sign(privateKey);
  tokens[alg] = await sign({ sub: `user of ${alg}` }, "2h");
  tokens[`expired ${alg}`] = await sign({ sub: "late" }, "-1h");
  tokens[`far ${alg}`] = await sign({ sub: "far" }, "2d");
  tokens[`${alg} without kid`] = await sign({ sub: `user of ${alg}` }, "2h", { alg });
}
console.log(JSON.stringify({ keys: { keys }, secrets: { keys: secrets }, tokens }));
